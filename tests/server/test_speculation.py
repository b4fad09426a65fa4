"""Speculation's options, up to the configuration they make, and its metrics."""

import pytest
from click.testing import CliRunner

from descant_engine.scheduler.stats import DraftStats, SchedulerStats
from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod
from descant_server import main
from descant_server.config import ServerConfig
from descant_server.metrics import EngineView, Metrics

NGRAM, DRAFT = SpeculativeMethod.NGRAM, SpeculativeMethod.DRAFT_MODEL


def serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[list[ServerConfig], str]:
    seen: list[ServerConfig] = []
    monkeypatch.setattr(main, "run", seen.append)
    result = CliRunner().invoke(main.serve, ["m", *arguments])
    return seen, result.output if result.exit_code else ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--speculative", "ngram"], SpeculativeConfig(method=NGRAM)),
        (
            ["--speculative", "ngram", "--num-speculative-tokens", "4"],
            SpeculativeConfig(method=NGRAM, num_speculative_tokens=4),
        ),
        (["--speculative", "draft", "--draft-model", "d"], SpeculativeConfig(method=DRAFT, model="d")),
        (["--draft-model", "d"], SpeculativeConfig(method=DRAFT, model="d")),
        (
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}'],
            SpeculativeConfig(method=NGRAM, num_speculative_tokens=5, prompt_lookup_max=4),
        ),
        (
            ["--speculative-config", '{"model": "d", "num_speculative_tokens": 3}'],
            SpeculativeConfig(method=DRAFT, model="d", num_speculative_tokens=3),
        ),
    ],
)
def test_options_arrive(monkeypatch, arguments, expected):
    configs, error = serve(monkeypatch, *arguments)
    assert error == ""
    assert configs[0].engine.speculative_config == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speculative", "draft"], "needs --draft-model"),
        (["--speculative", "ngram", "--draft-model", "d"], "ngram has no --draft-model"),
        (["--num-speculative-tokens", "4"], "needs --speculative"),
        (["--speculative", "ngram", "--num-speculative-tokens", "1000"], "must be in [1, 64]; got 1000"),
        (["--speculative", "eagle"], "'eagle' is not one of"),
        (["--speculative-config", "{"], "--speculative-config"),
        (["--speculative-config", '{"method": "eagle3", "model": "d"}'], "method 'eagle3' is not supported"),
        (["--speculative-config", '{"method": "ngram", "quantization": "fp8"}'], "no option 'quantization' here"),
        (["--speculative-config", '{"method": "ngram", "num_speculative_tokens": "x"}'], "Expected `int"),
        (["--speculative-config", '{"method": "ngram"}', "--speculative", "ngram"], "give no option beside it"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, arguments, message):
    configs, error = serve(monkeypatch, *arguments)
    assert configs == []
    assert message in error


def test_metrics_have_vllms_names():
    stats = SchedulerStats(
        num_running=0,
        num_waiting=0,
        num_waiting_for_adapter=0,
        num_queued_tokens=0,
        block_usage=0.0,
        prefix_query_tokens=0,
        prefix_hit_tokens=0,
        num_preemptions=0,
        num_adapter_loads=0,
        num_adapter_evictions=0,
        adapters=(),
        drafts=DraftStats(num_drafts=3, num_draft_tokens=12, num_accepted_tokens=7, num_accepted_by_place=(3, 2, 1, 1)),
    )
    lines = Metrics("m", lambda: EngineView(stats, 1, 16, {})).render().decode().splitlines()
    labels = 'engine="0",model_name="m"'
    assert f"vllm:spec_decode_num_drafts_total{{{labels}}} 3.0" in lines
    assert f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} 12.0" in lines
    assert f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} 7.0" in lines
    assert f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="1"}} 2.0' in lines
