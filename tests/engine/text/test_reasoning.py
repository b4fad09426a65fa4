import time

import pytest

from descant_engine.text.reasoning import (
    FORMS,
    THINK_TAGS,
    ReasoningCounter,
    ReasoningForm,
    ReasoningSplitter,
    form_for,
)

DEEPSEEK = FORMS["deepseek_r1"]
CASES = [
    (THINK_TAGS, False, "<think>\nhm, 1 < 2\n</think>\n\nTwo.", ("hm, 1 < 2", "Two.")),
    (THINK_TAGS, True, "hm\n</think>\n\nTwo.\n", ("hm", "Two.\n")),
    (THINK_TAGS, True, "<think>hm</think>Two.", ("hm", "Two.")),
    (THINK_TAGS, False, "Two <think> three", ("", "Two <think> three")),
    (THINK_TAGS, False, "<think>\n\n</think>\n\nTwo.", ("", "Two.")),
    (THINK_TAGS, False, "<think>never </thin done", ("never </thin done", "")),
    (THINK_TAGS, False, "<thi", ("", "<thi")),
    (THINK_TAGS, False, "", ("", "")),
    (DEEPSEEK, False, "hm</think>Two.", ("hm", "Two.")),
    (DEEPSEEK, False, "hm, for ever", ("hm, for ever", "")),
]


def split(form: ReasoningForm, starts_inside: bool, pieces: list[str]) -> tuple[str, str]:
    splitter = ReasoningSplitter(form, starts_inside=starts_inside)
    splits = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(each.reasoning for each in splits), "".join(each.content for each in splits)


@pytest.mark.parametrize(("form", "starts_inside", "text", "expected"), CASES)
def test_splits_wherever_the_text_is_cut(
    form: ReasoningForm, starts_inside: bool, text: str, expected: tuple[str, str]
) -> None:
    assert split(form, starts_inside, [text]) == expected
    assert split(form, starts_inside, list(text)) == expected
    for place in range(len(text)):
        assert split(form, starts_inside, [text[:place], text[place:]]) == expected


@pytest.mark.parametrize(
    ("form", "starts_inside", "tokens", "count"),
    [
        (THINK_TAGS, False, ["<think>", "a", "b", "</think>", "c", "d"], 4),
        (THINK_TAGS, True, ["a", "</", "think", ">", "c"], 4),
        (THINK_TAGS, False, ["Hello", "<think>", "a"], 0),
        (THINK_TAGS, False, ["<th", "ink>", "a"], 3),
        (DEEPSEEK, False, ["a", "b"], 2),
    ],
)
def test_counts_tokens(form: ReasoningForm, starts_inside: bool, tokens: list[str], count: int) -> None:
    counter = ReasoningCounter(form, starts_inside=starts_inside)
    for token in tokens:
        counter.feed(token.encode())
    assert counter.num_tokens == count


def test_the_chat_template_tells_whether_a_model_thinks() -> None:
    assert form_for("{{ '<think>' }}...{{ '</think>' }}") is THINK_TAGS
    assert form_for("{{ messages }}") is None
    assert form_for(None) is None


def test_reasoning_that_is_blank_without_end_takes_time_in_proportion_to_it() -> None:
    def seconds(num_characters: int) -> float:
        splitter = ReasoningSplitter(FORMS["qwen3"], starts_inside=True)
        begun = time.process_time()
        splitter.feed("a")
        for _ in range(num_characters // 4):
            splitter.feed("    ")
        assert splitter.feed("</think>b").content == "b"
        return time.process_time() - begun

    assert seconds(200_000) < 3.5 * seconds(100_000) + 0.1
