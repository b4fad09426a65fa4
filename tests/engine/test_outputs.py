from dataclasses import replace
from pathlib import Path

import pytest

from descant_engine.outputs import OutputText, RequestOutput, Usage, chosen_samples
from descant_engine.request import EngineRequest, FinishReason, SampleLogprobs, TokenDelta, TokenLogprobs, samples_of
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


class ScoredOutput(Output):
    """Each token's log-probability is minus its number."""

    def apply(self, text: str, finish: FinishReason | None = None, *, stop_token_id: int | None = None):
        token_ids = self.ids(text) + ([] if stop_token_id is None else [stop_token_id])
        scores = tuple(TokenLogprobs(token_id, -float(token_id), 1, ()) for token_id in token_ids)
        return self.text.apply(TokenDelta("r", token_ids, finish, stop_token_id, 2, None, SampleLogprobs(scores)))

    def shown(self, output: RequestOutput) -> str:
        return self.tokenizer.decode([token.logprobs.token_id for token in output.logprobs])


def test_log_probabilities_come_with_their_text(tokenizer: Tokenizer) -> None:
    output = ScoredOutput(tokenizer, stop=("END",))
    first = output.apply("one E")
    assert (first.text, output.shown(first)) == ("one ", "one ")
    second = output.apply("é")
    assert (second.text, output.shown(second)) == ("Eé", "Eé")
    # Both bytes of the letter begin where it does.
    assert [token.text_offset for token in (*first.logprobs, *second.logprobs)] == [0, 1, 2, 3, 4, 5, 5]
    last = output.apply("xEND")
    assert (last.text, output.shown(last), last.finish_reason) == ("x", "x", FinishReason.STOP)
    assert first.followed_by(second).followed_by(last).mean_logprob < 0


def test_at_the_end_every_token_of_the_text_is_scored_and_the_one_that_ended_it_is_not(tokenizer: Tokenizer) -> None:
    output = ScoredOutput(tokenizer, stop=("END",))
    last = output.apply("EN", FinishReason.STOP, stop_token_id=0)
    assert (last.text, output.shown(last), last.usage.completion_tokens) == ("EN", "EN", 3)


def test_bytes_that_stay_incomplete_keep_the_place_of_what_follows(tokenizer: Tokenizer) -> None:
    output = ScoredOutput(tokenizer)
    half, *_ = output.ids("é")
    deltas = [[half], output.ids("a"), [half], [half], output.ids("b")]
    offsets = []
    for number, token_ids in enumerate(deltas):
        scores = tuple(TokenLogprobs(token_id, -1.0, 1, ()) for token_id in token_ids)
        finish = FinishReason.LENGTH if number == 4 else None
        got = output.text.apply(TokenDelta("r", token_ids, finish, None, 0, None, SampleLogprobs(scores)))
        offsets += [token.text_offset for token in got.logprobs]
    assert offsets == [0, 1, 2, 3, 4]


def test_a_stop_string_or_token_may_be_part_of_the_text(tokenizer: Tokenizer) -> None:
    last = Output(tokenizer, stop=("END",), include_stop_str_in_output=True).apply("some END and more")
    assert (last.text, last.stop_reason, last.usage.completion_tokens) == ("some END", "END", 8)
    (letter,) = tokenizer.encode("z", add_special_tokens=False)
    output = Output(tokenizer, stop_token_ids=(letter,), include_stop_str_in_output=True)
    last = output.apply("ab", FinishReason.STOP, stop_token_id=letter)
    assert (last.text, last.stop_reason, last.usage.completion_tokens) == ("abz", letter, 3)


def test_special_tokens_may_be_part_of_the_text(tokenizer: Tokenizer) -> None:
    options = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    last = Output(tokenizer, **options).apply("ab", FinishReason.STOP, stop_token_id=0)
    assert (last.text, last.stop_reason) == ("ab<eos>", None)


def test_the_best_samples_are_the_likeliest_on_average(tokenizer: Tokenizer) -> None:
    texts = ["aaz", "zz", "b"]
    outputs = [ScoredOutput(tokenizer).apply(text, FinishReason.LENGTH) for text in texts]
    best = chosen_samples(outputs, SamplingParams(n=2, best_of=3))
    assert [output.text for output in best] == ["b", "aaz"]
    assert best[0].logprobs == ()
    assert chosen_samples(outputs, SamplingParams(n=3)) == outputs


def test_what_concerns_the_prompt_is_with_the_first_of_the_chosen(tokenizer: Tokenizer) -> None:
    prompt_logprobs = (TokenLogprobs(2, -1.0, 1, ()), TokenLogprobs(3, -1.0, 1, ()))
    for texts in (["z", "a", "b"], ["b", "a", "z"], ["a", "b", "z"]):
        outputs = [ScoredOutput(tokenizer).apply(text, FinishReason.LENGTH) for text in texts]
        outputs = [
            replace(outputs[0], prompt_logprobs=prompt_logprobs),
            *(replace(output, usage=Usage(0, 1, 0)) for output in outputs[1:]),
        ]
        best = chosen_samples(outputs, SamplingParams(n=2, best_of=3))
        assert [output.text for output in best] == ["a", "b"]
        assert [output.usage for output in best] == [Usage(3, 1, 2), Usage(0, 1, 0)]
        assert [output.prompt_logprobs for output in best] == [prompt_logprobs, ()]


def test_a_sample_counts_no_prompt_of_its_own(tokenizer: Tokenizer) -> None:
    request = EngineRequest(request_id="r", prompt_token_ids=(1, 2, 3), params=SamplingParams(n=2))
    usages = []
    for sample in samples_of(request):
        text = OutputText(sample, tokenizer, continues_text=True)
        usages.append(text.apply(TokenDelta("r", (5,), FinishReason.LENGTH, None, num_cached_tokens=2)).usage)
    assert usages == [Usage(3, 1, 2), Usage(0, 1, 0)]
