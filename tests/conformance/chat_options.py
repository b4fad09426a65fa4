"""What chats have of their own, of OpenAI's reference but for tools, and of vLLM's additions."""

from typing import Any

from .asking import HELLO, assert_refused
from .completion_options import assert_scores
from .model_folder import mark_id, token_id
from .option import Status, changes_nothing, refuses
from .sampling_options import CHAT
from .stack import Stack


def prompt_tokens(stack: Stack, *messages: dict[str, Any], **options: Any) -> int:
    return stack.chats.whole(messages=list(messages), max_tokens=1, **options).usage.prompt_tokens


PLAIN = len("<user>hi\n<assistant>")


@CHAT.works(
    "messages",
    "system, developer (read as system), user, assistant and tool; content as a text or as text parts; `name` where the"
    " model's template has a place for it. Images, audio and files are refused by name.",
)
def messages(stack: Stack) -> None:
    assert prompt_tokens(stack, {"role": "user", "content": "hi"}) == PLAIN
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert prompt_tokens(stack, {"role": "user", "content": parts}) >= PLAIN
    assert prompt_tokens(stack, {"role": "user", "content": "hi", "name": "bob"}) == PLAIN + len("bob: ")
    system, developer = (
        stack.chats.ask(messages=[{"role": role, "content": "Be brief."}, *HELLO]) for role in ("system", "developer")
    )
    assert system.choices == developer.choices
    assert system.usage.prompt_tokens == developer.usage.prompt_tokens
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    assert_refused(stack.chats.create, "messages", [{"role": "user", "content": [image]}])
    assert_refused(stack.chats.create, "messages", [{"role": "user", "content": "hi", "mood": "glad"}])


@CHAT.works("max_completion_tokens", "Wins over the older `max_tokens` where both are given.")
def max_completion_tokens(stack: Stack) -> None:
    assert stack.chats.ask(max_completion_tokens=3).num_tokens == 3
    assert stack.chats.ask(max_completion_tokens=3, max_tokens=6).num_tokens == 3
    assert_refused(stack.chats.create, "max_completion_tokens", -1)


@CHAT.works("logprobs", "Of the model itself, before penalties, bias and masks.")
def logprobs(stack: Stack) -> None:
    (choice,) = stack.chats.ask(logprobs=True).choices
    assert len(choice.tokens) == len(choice.logprobs) == 8
    forced = stack.chats.create(logprobs=True, logit_bias={token_id("x"): 100}).choices[0].logprobs.content
    assert [(each.token, each.bytes) for each in forced] == [("x", [ord("x")])] * 8
    assert all(each.logprob < -1 for each in forced)


@CHAT.works("top_logprobs", "0 to 20.")
def top_logprobs(stack: Stack) -> None:
    (choice,) = stack.chats.ask(logprobs=True, top_logprobs=4, allowed_token_ids=None).choices
    assert len(choice.tokens) == 8
    ascii_only = stack.chats.ask(logprobs=True, top_logprobs=1).choices[0]
    assert_scores(ascii_only, 1)
    assert_refused(stack.chats.create, "top_logprobs", 21, logprobs=True)
    assert_refused(stack.chats.create, "top_logprobs", 2)


@CHAT.works("metadata", "Texts, which go into the usage ledger as up to 16 tags to report by. No completion is stored.")
def metadata(stack: Stack) -> None:
    changes_nothing(stack.chats, metadata={"project": "apollo"})
    assert_refused(stack.chats.create, "metadata", "apollo")


@CHAT.works("prompt_cache_key", "Keeps requests of one key on one backend; prefixes are found by content.")
def prompt_cache_key(stack: Stack) -> None:
    changes_nothing(stack.chats, prompt_cache_key="a")


@CHAT.differs("safety_identifier", "Taken; nothing is done with it.")
def safety_identifier(stack: Stack) -> None:
    changes_nothing(stack.chats, safety_identifier="somebody")


@CHAT.works("add_generation_prompt")
def add_generation_prompt(stack: Stack) -> None:
    hi = {"role": "user", "content": "hi"}
    assert prompt_tokens(stack, hi, add_generation_prompt=False) == PLAIN - len("<assistant>")


@CHAT.works("continue_final_message", "Needs `add_generation_prompt: false`.")
def continue_final_message(stack: Stack) -> None:
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "He"}]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt_tokens(stack, *begun, **options) == PLAIN + len("He")
    assert_refused(stack.chats.create, "continue_final_message", True, messages=begun)


@CHAT.works("add_special_tokens", "False unless said otherwise: the template has them.")
def add_special_tokens(stack: Stack) -> None:
    counts = {prompt_tokens(stack, *HELLO, add_special_tokens=given) for given in (True, False)}
    assert counts == {PLAIN + len("Hello") - len("hi")}, "the suite's model has no begin token"


@CHAT.works(
    "chat_template_kwargs",
    "Variables of the template, such as Qwen's `enable_thinking`. Thoughts come as `reasoning_content` and are"
    " counted in `completion_tokens_details.reasoning_tokens`.",
)
def chat_template_kwargs(stack: Stack) -> None:
    thinking: dict[str, Any] = {
        "chat_template_kwargs": {"enable_thinking": True},
        "logit_bias": {token_id("x"): 60, mark_id("</think>"): 58.5},
        "structured_outputs": {"choice": ["yes", "no"]},
        "temperature": 1,
        "n": 4,
        "max_tokens": 300,
    }
    answer = stack.chats.ask(**thinking)
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert set(answer.texts) <= {"yes", "no"}
    assert any("x" in choice.reasoning for choice in answer.choices)
    assert details.reasoning_tokens == answer.num_tokens - sum(map(len, answer.texts))
    plain = stack.chats.ask(allowed_token_ids=[token_id("x")])
    assert (plain.choices[0].reasoning, plain.text) == ("", "x" * 8)


def refused(name: str, value: object, note: str = "", harmless: tuple[object, ...] = ()) -> None:
    CHAT.add(name, Status.REFUSED, note, lambda stack: refuses(stack.chats, name, value, harmless))


refused("audio", {"format": "wav", "voice": "alloy"}, "Only text is made.")
refused("modalities", ["text", "audio"], 'Other than `["text"]`.', (["text"],))
refused("prediction", {"type": "content", "content": "x"}, "Predicted outputs.")
refused("web_search_options", {"search_context_size": "low"}, "There is no search.")
refused("moderation", {"model": "omni-moderation-latest"})
refused(
    "reasoning_effort", "high", "Other than `none`; `chat_template_kwargs` says what a template knows of it.", ("none",)
)
refused("verbosity", "low", "Other than `medium`.", ("medium",))
refused("service_tier", "priority", "Other than `auto` and `default`.", ("auto", "default"))
refused("store", True, "Chat completions are not stored; responses are.", (False,))
refused("prompt_cache_retention", "24h", "Other than `in_memory`.", ("in_memory",))
refused("prompt_cache_options", {"mode": "explicit"})
refused("functions", [{"name": "f"}], "`tools` took its place.")
refused("function_call", {"name": "f"}, "`tool_choice` took its place.", ("none", "auto"))
refused("chat_template", "{{ messages }}", "The model's own is used: a template is a program.")
refused("documents", [{"title": "a", "text": "b"}], "", ([],))
refused("echo", True, "", (False,))
refused("include_reasoning", False, "Reasoning comes apart from content in any case.")
refused("media_io_kwargs", {"image": {}})
refused("mm_processor_kwargs", {"a": 1})
refused("return_prompt_text", True, "The engine's /tokenize shows a prompt's tokens.")
refused("best_of", 2, "Of text completions only.")
