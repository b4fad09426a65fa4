import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from descant_engine.sampling_params import SamplingParams
from descant_engine.text.detokenizer import Detokenizer
from descant_engine.text.tokenizer import Tokenizer

quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
token_lists = st.lists(st.integers(0, 450), max_size=40)
texts = st.text(st.sampled_from("Stop here, é日🎉 \n"), max_size=40)


def run(detokenizer: Detokenizer, token_ids: list[int], cuts: list[int]) -> list[str]:
    """The texts of `token_ids`, cut into deltas of the given sizes, until a stop string."""
    shown = []
    while token_ids and detokenizer.stop_string is None:
        size = cuts.pop() if cuts else 1
        shown.append(detokenizer.feed(token_ids[:size]))
        token_ids = token_ids[size:]
    return [*shown, detokenizer.finish()]


def cut_at_first_stop(text: str, stop: list[str]) -> str:
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(ends)[1]] if ends else text


@quick
@given(token_ids=token_lists, cuts=st.lists(st.integers(1, 5), max_size=20))
def test_deltas_join_to_the_decoded_text(tokenizer: Tokenizer, token_ids: list[int], cuts: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer, SamplingParams(), continues_text=False)
    assert "".join(run(detokenizer, token_ids, cuts)) == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert detokenizer.num_tokens == len(token_ids)


@quick
@given(
    text=texts,
    stop=st.lists(st.text(st.sampled_from("top h,é日🎉"), min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
def test_the_text_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, text: str, stop: list[str], data: st.DataObject
) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    cuts = data.draw(st.lists(st.integers(1, 5), max_size=20))
    detokenizer = Detokenizer(tokenizer, SamplingParams(stop=tuple(stop)), continues_text=False)
    assert "".join(run(detokenizer, token_ids, cuts)) == cut_at_first_stop(text, stop)
    assert (detokenizer.stop_string is not None) == any(s in text for s in stop)
    # The tokens taken are the fewest that hold the stop string.
    fewest = next(
        (n for n in range(len(token_ids)) if any(s in tokenizer.decode(token_ids[:n]) for s in stop)), len(token_ids)
    )
    assert detokenizer.num_tokens == fewest


@quick
@given(prompt=texts, token_ids=token_lists)
def test_an_output_goes_on_where_the_prompt_ended(
    sentencepiece_tokenizer: Tokenizer, prompt: str, token_ids: list[int]
) -> None:
    tokenizer = sentencepiece_tokenizer
    prompt_ids = tokenizer.encode("x" + prompt, add_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, SamplingParams(), continues_text=True)
    whole = tokenizer.decode([*prompt_ids, *token_ids], skip_special_tokens=True)
    assert "x" + prompt + "".join(run(detokenizer, token_ids, [])) == whole


def test_half_a_character_is_held_back(byte_level_tokenizer: Tokenizer) -> None:
    token_ids = byte_level_tokenizer.encode("a𒀀b", add_special_tokens=False)
    detokenizer = Detokenizer(byte_level_tokenizer, SamplingParams(), continues_text=True)
    shown = [detokenizer.feed([token_id]) for token_id in token_ids]
    assert [text for text in shown if text] == ["a", "𒀀", "b"]
    assert len(shown) == 6


def test_a_character_cut_short_is_shown_at_the_end(byte_level_tokenizer: Tokenizer) -> None:
    token_ids = byte_level_tokenizer.encode("a𒀀", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(byte_level_tokenizer, SamplingParams(), continues_text=True)
    assert detokenizer.feed(token_ids) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_stop_strings_are_unheeded_for_min_tokens(byte_level_tokenizer: Tokenizer) -> None:
    token_ids = byte_level_tokenizer.encode("qx qx qx", add_special_tokens=False)
    borders = [byte_level_tokenizer.decode(token_ids[:n]) for n in range(len(token_ids) + 1)]
    for min_tokens in range(len(token_ids) + 1):
        params = SamplingParams(stop=("x",), min_tokens=min_tokens)
        detokenizer = Detokenizer(byte_level_tokenizer, params, continues_text=True)
        exempt = borders[min_tokens]
        expected = exempt + cut_at_first_stop("qx qx qx"[len(exempt) :], ["x"])
        assert "".join(run(detokenizer, token_ids, [])) == expected


@pytest.mark.parametrize("stop", [(), ("never found",), ("h" * 50, "quick brown cow", "日本人")])
def test_a_token_costs_the_same_at_the_end_as_at_the_start(
    byte_level_tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    token_ids = byte_level_tokenizer.encode("The quick brown fox 日本語 ", add_special_tokens=False) * 2000

    def seconds(token_ids: list[int]) -> float:
        detokenizer = Detokenizer(byte_level_tokenizer, SamplingParams(stop=stop), continues_text=True)
        start = time.process_time()
        for token_id in token_ids:
            detokenizer.feed([token_id])
        return time.process_time() - start

    short = min(seconds(token_ids[: len(token_ids) // 8]) for _ in range(3))
    assert min(seconds(token_ids) for _ in range(2)) < 8 * short * 2
