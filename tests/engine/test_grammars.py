"""Grammars in the whole engine, on a small random model: only they can have made its output what it is."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from descant_engine import LLM, SamplingParams
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.engine import Engine
from descant_engine.frontend import Frontend
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_engine.request import EngineRequest, FinishReason

pytestmark = pytest.mark.timeout(120)

MAX_STEPS = 2000
DATE = GrammarSpec(GrammarKind.REGEX, "[0-9]{4}-[0-9]{2}-[0-9]{2}")
LETTERS = GrammarSpec(GrammarKind.REGEX, "[a-f]{40}")


def constrained(spec: GrammarSpec, **options: object) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 60, "grammar": spec} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llm(tiny_llama: Path) -> Iterator[LLM]:
    llm = LLM(tiny_llama, dtype="float32", device="cpu", max_model_len=256, num_blocks=64)
    yield llm
    llm.close()


def test_rows_with_and_without_a_grammar_share_steps(llm: LLM) -> None:
    free = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    alone = llm.generate(["abc"], free, use_tqdm=False)[0].text
    outputs = llm.generate(["abc"] * 4, [constrained(DATE), free, constrained(LETTERS), free], use_tqdm=False)
    assert re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", outputs[0].text)
    assert re.fullmatch("[a-f]{40}", outputs[2].text)
    assert outputs[1].text == outputs[3].text == alone
    assert [output.finish_reason for output in outputs] == ["stop", "length", "stop", "length"]


@pytest.mark.parametrize("options", [{}, {"min_tokens": 30}, {"ignore_eos": True}, {"temperature": 0.0}])
def test_an_output_ends_where_its_grammar_does(llm: LLM, options: dict[str, object]) -> None:
    (output,) = llm.generate(["abc"], constrained(DATE, **options), use_tqdm=False)
    assert re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", output.text)
    assert (output.finish_reason, output.usage.completion_tokens) == ("stop", 10)


def test_min_tokens_holds_where_the_grammar_may_go_on(llm: LLM) -> None:
    spec = GrammarSpec(GrammarKind.REGEX, "[a-f]+")
    outputs = llm.generate(["abc"] * 4, constrained(spec, min_tokens=25, max_tokens=30), use_tqdm=False)
    assert all(len(output.text) >= 25 and re.fullmatch("[a-f]+", output.text) for output in outputs)


def test_the_length_limit_cuts_an_output_within_its_grammar(llm: LLM) -> None:
    (output,) = llm.generate(["abc"], constrained(LETTERS, max_tokens=7), use_tqdm=False)
    assert (output.finish_reason, len(output.text)) == ("length", 7)


def test_an_impossible_grammar_ends_only_its_call(llm: LLM) -> None:
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, '{"$ref": "#"}')
    with pytest.raises(GrammarRefused, match="no finite value"):
        llm.generate(["abc", "def"], [constrained(spec), constrained(DATE)], use_tqdm=False)
    (output,) = llm.generate(["abc"], constrained(DATE), use_tqdm=False)
    assert output.finish_reason == "stop"


def test_options_that_contradict_the_grammar_are_an_error_of_that_request(llm: LLM) -> None:
    zero = llm._frontend.tokenizer.encode("0", add_special_tokens=False)
    letters = constrained(LETTERS, allowed_token_ids=tuple(zero))
    fine, contradicted = llm.generate(["abc", "abc"], [constrained(DATE), letters], use_tqdm=False)
    assert fine.finish_reason == "stop"
    assert contradicted.finish_reason is FinishReason.UNMET
    assert contradicted.error is not None
    assert "left its grammar" in contradicted.error


@pytest.fixture
def make_engine(tiny_llama: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(steps_ahead: int = 0, **options: object) -> Engine:
        """With llguidance unless the options say otherwise: xgrammar takes seconds to load."""
        settings = {"dtype": "float32", "device": "cpu", "max_model_len": 128} | options
        settings = {"structured_output_backend": "llguidance"} | settings
        engine = Engine(resolve(EngineConfig(model=str(tiny_llama), **settings)))  # type: ignore[arg-type]
        engine._steps_ahead = steps_ahead
        engine.use_vocabulary(Frontend(engine.config).tokenizer.visible_tokens)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def submit(engine: Engine, request_id: str, params: SamplingParams) -> None:
    engine.submit(EngineRequest(request_id=request_id, prompt_token_ids=(5, 6, 7, 8) * 8, params=params))


def run(engine: Engine) -> dict[str, bytes]:
    """Every request's output."""
    outputs: dict[str, bytes] = {}
    for _ in range(MAX_STEPS):
        if not engine.has_work:
            return outputs
        for delta in engine.step():
            assert delta.error is None
            data = b"".join(_bytes_of(engine, token) for token in delta.token_ids if token != delta.stop_token_id)
            outputs[delta.request_id] = outputs.get(delta.request_id, b"") + data
        engine.check_integrity()
    raise AssertionError("it does not end")


def _bytes_of(engine: Engine, token_id: int) -> bytes:
    assert engine._grammars is not None
    return engine._grammars._vocabulary.tokens[token_id]


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_preempted_requests_keep_to_their_grammars(make_engine: Callable[..., Engine], steps_ahead: int) -> None:
    """Planned a step ahead, as on a GPU, or not: seven requests in a pool for three."""
    backend = "auto" if steps_ahead else "llguidance"
    options = {"num_blocks": 14, "block_size": 16, "enable_prefix_caching": False}
    engine = make_engine(steps_ahead, structured_output_backend=backend, **options)
    for number in range(7):
        submit(engine, str(number), constrained(LETTERS, seed=number))
    submit(engine, "free", SamplingParams(max_tokens=40, ignore_eos=True))
    outputs = run(engine)
    assert engine.stats().num_preemptions > 0
    assert all(re.fullmatch(b"[a-f]{40}", outputs[str(number)]) for number in range(7))


def test_planning_ahead_changes_no_output(make_engine: Callable[..., Engine]) -> None:
    outputs = []
    for steps_ahead in (0, 1):
        engine = make_engine(steps_ahead, num_blocks=64)
        for number in range(3):
            submit(engine, str(number), constrained(LETTERS, seed=number))
            submit(engine, f"free {number}", SamplingParams(max_tokens=30, seed=number, ignore_eos=True))
        outputs.append(run(engine))
    assert outputs[0] == outputs[1]


def test_an_end_that_the_grammar_decides_has_its_times(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(num_blocks=64)
    submit(engine, "date", constrained(DATE))
    deltas = [delta for _ in range(MAX_STEPS) if engine.has_work for delta in engine.step()]
    times = deltas[-1].times
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert times is not None
    assert times.first_token < times.finished


def test_requests_may_be_aborted_at_any_time(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(1, num_blocks=64)
    submit(engine, "waiting", constrained(GrammarSpec(GrammarKind.REGEX, "[b-z]{30}")))
    assert engine.stats().num_waiting_for_grammar == 1
    engine.abort("waiting")
    assert not engine.has_work
    submit(engine, "running", constrained(LETTERS))
    for _ in range(MAX_STEPS):
        if engine.step():
            break
    engine.abort("running")
    submit(engine, "running", constrained(DATE))
    assert re.fullmatch(b"[0-9]{4}-[0-9]{2}-[0-9]{2}", run(engine)["running"])
    assert engine._grammars is not None
    assert not engine._grammars._following


def test_others_run_while_a_grammar_is_compiled(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(num_blocks=64)
    properties = {f"p{i}": {"pattern": f"^(a|b){{1,{i + 9}}}$"} for i in range(300)}
    vast = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps({"type": "object", "properties": properties}))
    submit(engine, "vast", constrained(vast, max_tokens=1))
    submit(engine, "free", SamplingParams(max_tokens=3, ignore_eos=True))
    assert len([delta for _ in range(3) for delta in engine.step() if delta.request_id == "free"]) == 3
