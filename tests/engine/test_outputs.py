from pathlib import Path

import pytest

from descant_engine.outputs import OutputText, RequestOutput, Usage
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    """One token a byte."""
    return Tokenizer.load(str(tiny_llama))


class Output:
    """One request with a prompt of three tokens, fed with text."""

    def __init__(self, tokenizer: Tokenizer, **params: object) -> None:
        self.tokenizer = tokenizer
        request = EngineRequest(request_id="r", prompt_token_ids=(1, 2, 3), params=SamplingParams(**params))  # type: ignore[arg-type]
        self.text = OutputText(request, tokenizer, continues_text=True)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def apply(self, text: str, finish: FinishReason | None = None, *, stop_token_id: int | None = None):
        token_ids = self.ids(text) + ([] if stop_token_id is None else [stop_token_id])
        return self.text.apply(TokenDelta("r", token_ids, finish, stop_token_id, num_cached_tokens=2))


def test_outputs_are_differences_and_usage_the_total(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer)
    assert output.apply("Hel") == RequestOutput("r", "Hel", tuple(output.ids("Hel")), Usage(3, 3, 2))
    last = output.apply("lo", FinishReason.LENGTH)
    assert last == RequestOutput("r", "lo", tuple(output.ids("lo")), Usage(3, 5, 2), FinishReason.LENGTH)
    assert output.text.is_finished


def test_a_stop_string_ends_the_output_before_the_engine_knows(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer, stop=("END",))
    assert output.apply("some E").text == "some "
    last = output.apply("ND and more")
    assert (last.text, last.finish_reason, last.stop_reason) == ("", FinishReason.STOP, "END")
    # "some END" is eight bytes; what came after them in the same step is neither shown nor counted.
    assert last.usage == Usage(3, 8, 2)
    assert last.token_ids == tuple(output.ids("ND"))
    assert output.apply("x", FinishReason.LENGTH) is None


def test_a_stop_string_beats_the_end_of_the_same_delta(tokenizer: Tokenizer) -> None:
    last = Output(tokenizer, stop=("b",)).apply("abc", FinishReason.STOP, stop_token_id=0)
    assert (last.text, last.stop_reason, last.usage.completion_tokens) == ("a", "b", 2)


def test_the_models_own_end_is_counted_but_not_shown(tokenizer: Tokenizer) -> None:
    last = Output(tokenizer).apply("ab", FinishReason.STOP, stop_token_id=0)
    assert (last.text, last.stop_reason, last.usage.completion_tokens) == ("ab", None, 3)
    assert last.token_ids[-1] == 0


def test_a_stop_token_of_the_client_is_named_and_not_shown(tokenizer: Tokenizer) -> None:
    (letter,) = tokenizer.encode("z", add_special_tokens=False)
    last = Output(tokenizer, stop_token_ids=(letter,)).apply("ab", FinishReason.STOP, stop_token_id=letter)
    assert (last.text, last.stop_reason) == ("ab", letter)


def test_held_back_text_comes_with_the_end(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer, stop=("END",))
    assert output.apply("EN").text == ""
    assert output.apply("", FinishReason.LENGTH).text == "EN"


def test_an_error_is_passed_on(tokenizer: Tokenizer) -> None:
    delta = TokenDelta("r", (), FinishReason.ERROR, None, 0, error="the adapter's file is gone")
    output = Output(tokenizer).text.apply(delta)
    assert output is not None
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, "the adapter's file is gone")


def test_outputs_merge(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer, stop=("END",))
    merged = output.apply("one ").followed_by(output.apply("two END"))
    assert (merged.text, merged.stop_reason, merged.usage.completion_tokens) == ("one two ", "END", 11)
    assert tokenizer.decode(merged.token_ids) == "one two END"
