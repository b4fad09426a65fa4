"""What vLLM adds to both chats and texts."""

import re
from typing import Any

from .asking import Asking, Chats, assert_refused
from .model_folder import token_id
from .option import Status
from .sampling_options import BOTH, CHAT, COMPLETIONS, LETTERS, repeats, scored
from .stack import MODEL, Stack

EOS_ID = 0
ALWAYS_EOS = {str(EOS_ID): 100}


@BOTH.works("top_k", "0 or -1 keeps all tokens.")
def top_k(asking: Asking) -> None:
    assert asking.ask(temperature=1, top_k=1).text == asking.ask().text
    assert asking.ask(temperature=1, top_k=-1).text == asking.ask(temperature=1).text
    assert_refused(asking.create, "top_k", -2)


@BOTH.works("min_p")
def min_p(asking: Asking) -> None:
    assert asking.ask(temperature=1, min_p=1).text == asking.ask().text
    assert_refused(asking.create, "min_p", 1.5)


@BOTH.works("repetition_penalty", "Above 0, up to 10; of tokens in prompt and output.")
def repetition_penalty(asking: Asking) -> None:
    assert repeats(asking) > 0
    assert repeats(asking, repetition_penalty=10) == 0
    assert_refused(asking.create, "repetition_penalty", 0)


@BOTH.works("min_tokens", "The end, stop tokens and stop strings wait for so many.")
def min_tokens(asking: Asking) -> None:
    assert asking.ask(logit_bias=ALWAYS_EOS).num_tokens == 1
    assert asking.ask(logit_bias=ALWAYS_EOS, min_tokens=4).num_tokens == 5
    assert_refused(asking.create, "min_tokens", -1)


@BOTH.works("ignore_eos")
def ignore_eos(asking: Asking) -> None:
    answer = asking.ask(logit_bias=ALWAYS_EOS, ignore_eos=True)
    assert (answer.num_tokens, answer.choices[0].finish_reason) == (8, "length")


@BOTH.works("stop_token_ids", "Up to 1,024; `stop_reason` says which it was.")
def stop_token_ids(asking: Asking) -> None:
    answer = asking.ask(logit_bias={token_id("x"): 100}, stop_token_ids=[token_id("y"), token_id("x")])
    assert (answer.text, answer.num_tokens, answer.choices[0].stop_reason) == ("", 1, token_id("x"))


@BOTH.works("include_stop_str_in_output")
def include_stop_str_in_output(asking: Asking) -> None:
    options: dict[str, Any] = {"logit_bias": {token_id("x"): 100}, "stop": "xx"}
    assert asking.ask(**options).text == ""
    assert asking.ask(**options, include_stop_str_in_output=True).text == "xx"


@BOTH.works("skip_special_tokens", "False shows special tokens as text.")
def skip_special_tokens(asking: Asking) -> None:
    options: dict[str, Any] = {"logit_bias": ALWAYS_EOS, "ignore_eos": True, "max_tokens": 2}
    assert asking.ask(**options).text == ""
    assert asking.ask(**options, skip_special_tokens=False).text == "<eos><eos>"


@BOTH.differs("spaces_between_special_tokens", "Taken; the tokenizers served here put no spaces there in any case.")
def spaces_between_special_tokens(asking: Asking) -> None:
    options: dict[str, Any] = {"logit_bias": ALWAYS_EOS, "ignore_eos": True, "max_tokens": 2}
    for given in (True, False):
        answer = asking.ask(**options, skip_special_tokens=False, spaces_between_special_tokens=given)
        assert answer.text == "<eos><eos>"


@BOTH.works("allowed_token_ids")
def allowed_token_ids(asking: Asking) -> None:
    assert set(asking.ask(allowed_token_ids=LETTERS[:3]).text) <= set("abc")
    assert_refused(asking.create, "allowed_token_ids", [])


@BOTH.works("bad_words", "Up to 256.")
def bad_words(asking: Asking) -> None:
    options: dict[str, Any] = {"allowed_token_ids": LETTERS[:3]}
    text = asking.ask(**options).text
    assert text[:2] not in asking.ask(**options, bad_words=[text[:2]]).text
    assert set(asking.ask(**options, bad_words=["a", "b"]).text) == {"c"}


@BOTH.works("prompt_logprobs", "Up to 20 of the likeliest beside each token of the prompt; null for the first.")
def prompt_logprobs(asking: Asking) -> None:
    answer = asking.ask(prompt_logprobs=2)
    assert answer.prompt_logprobs is not None
    first, *others = answer.prompt_logprobs
    assert first is None
    assert len(others) == answer.usage.prompt_tokens - 1
    for entry in others:
        assert entry is not None
        assert {1, 2} <= {token["rank"] for token in entry.values()}
        assert all(token["logprob"] < 0 for token in entry.values())
    assert_refused(asking.create, "prompt_logprobs", 21)


@BOTH.works("truncate_prompt_tokens", "The last so many tokens; -1 takes as many as the context holds.")
def truncate_prompt_tokens(asking: Asking) -> None:
    assert asking.ask(truncate_prompt_tokens=3).usage.prompt_tokens == 3
    assert_refused(asking.create, "truncate_prompt_tokens", -2)


@BOTH.works("return_tokens_as_token_ids")
def return_tokens_as_token_ids(asking: Asking) -> None:
    answer = asking.ask(**scored(asking), logit_bias={token_id("x"): 100})
    assert answer.choices[0].tokens == [f"token_id:{token_id('x')}"] * 8
    assert re.fullmatch("x*", answer.text)


@BOTH.works("cache_salt", "Requests of different salts share no prefix. Teams never share one, salt or not.")
def cache_salt(asking: Asking) -> None:
    prompt = (
        {"messages": [{"role": "user", "content": "y" * 64}]} if isinstance(asking, Chats) else {"prompt": "y" * 64}
    )
    kind = type(asking).__name__
    cached = [cached_tokens(asking, cache_salt=kind + salt, **prompt) for salt in ("one", "one", "two")]
    assert cached[0] == cached[2] == 0
    assert cached[1] >= 48


def cached_tokens(asking: Asking, **options: Any) -> int:
    details = asking.whole(**options).usage.prompt_tokens_details
    return (details.cached_tokens if details else 0) or 0


def priority_on_the_engine(stack: Stack, path: str, prompt: dict[str, object]) -> None:
    """The gateway lets nobody pass by others; the engine alone takes it."""
    body = {"model": MODEL, "max_tokens": 2, "priority": -5, **prompt}
    answer = stack.engine.post(path, body=body, cast_to=object)
    assert isinstance(answer, dict)
    assert answer["usage"]["completion_tokens"] == 2


def chat_priority(stack: Stack) -> None:
    assert_refused(stack.chats.create, "priority", -5)
    assert stack.chats.ask(priority=0).num_tokens == 8
    priority_on_the_engine(stack, "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})


def completion_priority(stack: Stack) -> None:
    assert_refused(stack.completions.create, "priority", -5)
    assert stack.completions.ask(priority=0).num_tokens == 8
    priority_on_the_engine(stack, "/v1/completions", {"prompt": "x"})


PRIORITY = "The engine takes it, lower first. The gateway takes only 0: a key could pass by everybody else's requests."
CHAT.add("priority", Status.DIFFERS, PRIORITY, chat_priority)
COMPLETIONS.add("priority", Status.DIFFERS, PRIORITY, completion_priority)

BOTH.refused("use_beam_search", True, "Beam search.", harmless=(False,))
BOTH.refused("length_penalty", 0.5, "Of beam search.", harmless=(1.0,))
BOTH.refused("early_stopping", True, "Of beam search.", harmless=(False,))
BOTH.refused("watermarking", True)
BOTH.refused("truncation_side", "right", "`truncate_prompt_tokens` keeps the end.")
BOTH.refused("logprob_token_ids", [1], "`top_logprobs` gives the likeliest ones.")
BOTH.refused("thinking_token_budget", 16)
BOTH.refused("request_id", "mine", "The header `x-request-id` names a request.")
BOTH.refused("session_id", "mine", "The gateway's header `x-session-id` keeps a conversation on one backend.")
BOTH.refused("return_token_ids", True, "`return_tokens_as_token_ids` names the tokens of log-probabilities.")
BOTH.refused("return_token_offsets", True, "Of vLLM's render endpoints.")
BOTH.refused("return_mm_kwargs", False, "Of vLLM's render endpoints.")
BOTH.refused("routed_experts_prompt_start", 1)
BOTH.refused("kv_transfer_params", {"do_remote_decode": True})
BOTH.refused("ec_transfer_params", {"do_remote_decode": True})
BOTH.refused("vllm_xargs", {"a": 1}, "There are no extensions to pass it to.")
BOTH.refused("repetition_detection", {"max_pattern_size": 4})
BOTH.refused("stream_interval", 4, "A client that reads slowly gets several tokens to an event by itself.")
BOTH.refused("logits_processors", ["a.b"], "Code of a client's own is never run.")
BOTH.refused("guided_decoding_backend", "outlines", "`--structured-output-backend` of the engine.")
BOTH.refused("guided_whitespace_pattern", "[ ]?")
BOTH.refused("structural_tag", "{}", "`response_format` and `structured_outputs` take structural tags.")
