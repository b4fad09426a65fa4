from copy import copy

import pytest

from descant_engine.text.chat_template import ChatMessage, ChatTemplateError, num_characters, render_chat
from descant_engine.text.tokenizer import Tokenizer

QUESTION: list[ChatMessage] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_renders_the_models_own_template(byte_level_tokenizer: Tokenizer) -> None:
    expected = "<|start|>system\nBe brief.<|end|><|start|>user\nWhy?<|end|>"
    assert render_chat(byte_level_tokenizer, QUESTION) == expected + "<|start|>assistant\n"
    assert render_chat(byte_level_tokenizer, QUESTION, add_generation_prompt=False) == expected


def test_text_parts_are_joined_by_line_breaks(byte_level_tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    message: ChatMessage = {"role": "user", "content": parts}  # type: ignore[typeddict-item]
    assert "<|start|>user\none\ntwo<|end|>" in render_chat(byte_level_tokenizer, [message])
    assert num_characters([message, *QUESTION]) == 6 + 9 + 4


def test_the_templates_complaint_is_passed_on(byte_level_tokenizer: Tokenizer) -> None:
    with pytest.raises(ChatTemplateError, match="unknown role wizard"):
        render_chat(byte_level_tokenizer, [{"role": "wizard", "content": "Hi"}])


def test_a_model_without_a_template_says_what_to_do(sentencepiece_tokenizer: Tokenizer) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template"):
        render_chat(sentencepiece_tokenizer, QUESTION)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "there are no messages"),
        ([QUESTION[0], "hello"], r"messages\[1\] must be an object"),
        ([{"content": "x"}], r"messages\[0\].role must be a string"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role must be a string"),
        ([QUESTION[0], {"role": "user"}], r"messages\[1\].content must be a string or a list"),
        ([{"role": "user", "content": 5}], r"messages\[0\].content must be a string or a list"),
        ([{"role": "user", "content": {"type": "text", "text": "x"}}], r"messages\[0\].content must be a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] must be .* reads text only"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\] must be"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"messages\[0\].content\[0\] must be"),
    ],
)
def test_a_message_of_the_wrong_form_is_named(
    byte_level_tokenizer: Tokenizer, messages: list[ChatMessage], complaint: str
) -> None:
    with pytest.raises(ChatTemplateError, match=complaint):
        render_chat(byte_level_tokenizer, messages)
    num_characters(messages)


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] + 1 }}", "{{ nothing.at.all }}", "{% for %}", "{{ ''.__class__.__mro__ }}"],
)
def test_a_broken_template_is_the_requests_error_only(byte_level_tokenizer: Tokenizer, template: str) -> None:
    byte_level_tokenizer.pretrained.chat_template, before = template, byte_level_tokenizer.pretrained.chat_template
    try:
        with pytest.raises(ChatTemplateError):
            render_chat(byte_level_tokenizer, QUESTION)
    finally:
        byte_level_tokenizer.pretrained.chat_template = before


def test_the_templates_own_variables_are_given_and_others_refused(byte_level_tokenizer: Tokenizer) -> None:
    pretrained = copy(byte_level_tokenizer.pretrained)
    pretrained.chat_template = (
        "{% for message in messages %}{% generation %}{{ message['content'] }}{% endgeneration %}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<no thoughts>{% endif %}{{ bos_token }}"
        "{% set local = 1 %}{{ local }}"
    )
    tokenizer = Tokenizer(pretrained)
    assert "<no thoughts>" not in render_chat(tokenizer, QUESTION)
    assert "<no thoughts>" in render_chat(tokenizer, QUESTION, template_kwargs={"enable_thinking": False})
    for name in ("tokenize", "chat_template", "local", "bos_token", "messages"):
        with pytest.raises(ChatTemplateError, match=f"does not read chat_template_kwargs.{name}; it reads enable_thin"):
            render_chat(tokenizer, QUESTION, template_kwargs={name: True})


def test_the_last_message_may_stay_open(byte_level_tokenizer: Tokenizer) -> None:
    messages: list[ChatMessage] = [*QUESTION, {"role": "assistant", "content": "Because"}]
    text = render_chat(byte_level_tokenizer, messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("<|start|>assistant\nBecause")
    with pytest.raises(ChatTemplateError, match="continue_final_message"):
        render_chat(byte_level_tokenizer, messages, continue_final_message=True)
