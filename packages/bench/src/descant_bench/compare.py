"""Our figures beside a peer's on the same cases, and beside our own base.

    python -m descant_bench.compare OURS.json [...] VLLM.json [...] --output docs/results/h200-vllm

Takes any number of files of both kinds, in any order: reports of `descant bench throughput`, and those of the peer's
runner ({"CASE#RUN": {"out_tok_s": ...}}). A case that is in several files of one side is taken from the last. Writes
NAME.json (a row a workload), NAME.md (a table) and, with matplotlib, NAME.svg. Medians; see `run_files.typical` for
what is done with short series.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from descant_bench.report_file import write_report
from descant_bench.run_files import RunFile, read_run, typical
from descant_bench.targets import COUNTS_PROMPT_TOKENS, TARGETS

START: Final = "start to ready"
SECONDS: Final = "s"


@dataclass(frozen=True, slots=True)
class Row:
    workload: str
    unit: str
    descant: float
    descant_runs: tuple[float, ...]
    vllm: float | None
    vllm_runs: tuple[float, ...]
    ratio: float | None
    wanted: float | None
    stretch: float | None
    of_own_base: float | None
    wanted_of_base: float | None
    commit: str | None
    date: str | None
    command: str | None
    engine_options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Side:
    """One engine's cases, and the file that each is from."""

    files: Mapping[str, RunFile]

    @classmethod
    def of(cls, runs: Iterable[RunFile]) -> "_Side":
        return cls({name: run for run in runs for name in run.cases})

    def series(self, workload: str) -> tuple[float, ...]:
        case = self.files[workload].cases[workload]
        return case.total_tok_s if workload in COUNTS_PROMPT_TOKENS else case.out_tok_s

    def typical(self, workload: str | None) -> float | None:
        if workload is None or workload not in self.files:
            return None
        return typical(self.series(workload), is_peer=self.files[workload].is_peer)


def compare(runs: Sequence[RunFile]) -> list[Row]:
    """A row for each of our cases, in their order, and one for the start. Raises ValueError if no file is ours."""
    ours = _Side.of(run for run in runs if not run.is_peer)
    peer = _Side.of(run for run in runs if run.is_peer)
    if not ours.files:
        raise ValueError("none of the files is a report of `descant bench throughput`: there is nothing to compare")
    return [*(_row(workload, ours, peer) for workload in ours.files), *_start_row(runs)]


def _row(workload: str, ours: _Side, peer: _Side) -> Row:
    run, target = ours.files[workload], TARGETS.get(workload)
    own, theirs = ours.typical(workload), peer.typical(workload)
    assert own is not None
    return Row(
        workload=workload,
        unit="total tok/s" if workload in COUNTS_PROMPT_TOKENS else "output tok/s",
        descant=own,
        descant_runs=ours.series(workload),
        vllm=theirs,
        vllm_runs=peer.series(workload) if theirs is not None else (),
        ratio=_ratio(own, theirs),
        wanted=target.wanted if target else None,
        stretch=target.stretch if target else None,
        of_own_base=_ratio(own, ours.typical(target.own_base)) if target else None,
        wanted_of_base=target.wanted_of_base if target else None,
        commit=run.commit,
        date=run.date,
        command=run.command,
        engine_options=run.options,
    )


def _start_row(runs: Sequence[RunFile]) -> list[Row]:
    """From the start of the engine to its being ready: the ratio is the peer's time over ours."""
    ours, theirs = (
        tuple(run.startup_s for run in runs if run.is_peer is is_peer and run.startup_s is not None)
        for is_peer in (False, True)
    )
    if not ours:
        return []
    first = next(run for run in runs if not run.is_peer)
    own, other = median(ours), median(theirs) if theirs else None
    return [
        Row(
            workload=START,
            unit=SECONDS,
            descant=own,
            descant_runs=ours,
            vllm=other,
            vllm_runs=theirs,
            ratio=round(other / own, 3) if other and own else None,
            wanted=None,
            stretch=None,
            of_own_base=None,
            wanted_of_base=None,
            commit=first.commit,
            date=first.date,
            command=first.command,
            engine_options=first.options,
        )
    ]


def _ratio(own: float, other: float | None) -> float | None:
    return round(own / other, 3) if other else None


def markdown(rows: Sequence[Row]) -> str:
    """Bold: less than what is wanted."""
    lines = [
        "| workload | Descant | vLLM | ratio | wanted | stretch | of own base | wanted |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row.workload, _figure(row.descant, row.unit), _figure(row.vllm, row.unit)]
        cells += [_measured(row.ratio, row.wanted), _plain(row.wanted), _plain(row.stretch)]
        cells += [_measured(row.of_own_base, row.wanted_of_base), _plain(row.wanted_of_base)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if unit == SECONDS else f"{value:,.0f}"


def _measured(value: float | None, wanted: float | None) -> str:
    if value is None or wanted is None or value >= wanted:
        return _plain(value)
    return f"**{value:.2f}**"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="RUN.json")
    parser.add_argument("--output", type=Path, metavar="NAME", help="writes NAME.json, NAME.md and NAME.svg")
    args = parser.parse_args()
    try:
        rows = compare([read_run(path) for path in args.files])
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(markdown(rows), end="")
    if args.output is not None:
        write_report(args.output.with_suffix(".json"), rows)
        args.output.with_suffix(".md").write_text(markdown(rows))
        _plot(rows, args.output.with_suffix(".svg"))


def _plot(rows: Sequence[Row], path: Path) -> None:
    from descant_bench.plots import MatplotlibMissing, plot_ratios

    try:
        plot_ratios([(row.workload, row.ratio, row.wanted) for row in rows if row.ratio is not None], path)
    except MatplotlibMissing as missing:
        print(f"no {path.name}: {missing}")


if __name__ == "__main__":
    main()
