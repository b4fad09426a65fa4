"""`descant bench MEASUREMENT`: runs one of this package's measurements with its own options."""

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import click

MEASUREMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cpu-speed": "SmolLM2 on the CPU beside transformers' generate, in one run.",
        "serve": "Load on any server with OpenAI's API: vllm bench serve's flags and lines.",
        "throughput": "An engine in this process over recorded requests.",
        "latency": "One batch from its arrival to its last token.",
        "startup": "From the start of a process to the first token.",
        "grammar-cost": "A batch with and without grammars, in turns.",
        "speculation": "What drafts give and cost, beside the same engine without.",
        "profile-steps": "Time per step by part, beside what bytes and operations allow.",
        "residents": "Writes cases with 1 to 1,000 adapters, and the adapters.",
        "neighbours": "Writes cases with more adapters than fit, and with one that floods the others.",
        "curve": "Throughput by the number of adapters in use, from those cases.",
        "compare": "Our figures beside a peer's on the same cases: table, JSON, plot.",
        "regression": "What moved since a run that was kept; fails if something got slower.",
    }
)
_LIST: Final = "\n".join(f"  {name}: {summary}" for name, summary in MEASUREMENTS.items())


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help=f"Run a measurement; `descant bench MEASUREMENT --help` shows its options.\n\n\b\n{_LIST}",
)
@click.argument("measurement", type=click.Choice(list(MEASUREMENTS)))
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def bench(measurement: str, options: tuple[str, ...]) -> None:
    sys.argv = [f"descant bench {measurement}", *options]
    importlib.import_module(f"descant_bench.{measurement.replace('-', '_')}").main()
