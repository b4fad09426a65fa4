"""The curve of a thousand residents: throughput by the number of adapters in use, from a report of their cases.

    python -m descant_bench.curve REPORT.json --output docs/results/h200-residents

REPORT.json comes from `descant bench throughput` over the cases that `descant bench residents` wrote. Writes NAME.json,
NAME.md and, with matplotlib, NAME.svg.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from descant_bench.plots import MatplotlibMissing, plot_curves
from descant_bench.report_file import write_report

REFERENCE_COUNT = 64
_CASE = re.compile(r"residents-(?P<count>\d+)-(?P<popularity>.+)")


@dataclass(frozen=True, slots=True)
class Point:
    num_adapters: int
    popularity: str
    out_tok_s: float
    of_reference: float | None
    """Throughput over that with 64 adapters of the same popularity."""
    of_floor: float | None
    """Share of what the bytes and operations of the run's steps allow."""


def points_of(report: dict[str, Any]) -> list[Point]:
    """By popularity, then by count. Raises ValueError if the report has none of the cases."""
    medians: dict[tuple[str, int], dict[str, Any]] = {}
    for name, case in report["cases"].items():
        if (match := _CASE.fullmatch(name)) is not None:
            medians[match["popularity"], int(match["count"])] = case["median"]
    if not medians:
        raise ValueError("the report has no case residents-COUNT-POPULARITY")
    return [_point(popularity, count, medians) for popularity, count in sorted(medians)]


def _point(popularity: str, count: int, medians: dict[tuple[str, int], dict[str, Any]]) -> Point:
    median, reference = medians[popularity, count], medians.get((popularity, REFERENCE_COUNT))
    share = None if reference is None else round(median["out_tok_s"] / reference["out_tok_s"], 3)
    return Point(count, popularity, median["out_tok_s"], share, median.get("of_floor"))


def markdown(points: Sequence[Point]) -> str:
    lines = ["| adapters | popularity | output tok/s | of 64 adapters | of the roofline |", "|---:|---|---:|---:|---:|"]
    for point in points:
        cells = (f"{share:.2f}" if share is not None else "" for share in (point.of_reference, point.of_floor))
        lines.append(f"| {point.num_adapters} | {point.popularity} | {point.out_tok_s:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    parser.add_argument("--output", type=Path, metavar="NAME")
    args = parser.parse_args()
    try:
        points = points_of(json.loads(args.report.read_text()))
    except ValueError as error:
        raise SystemExit(f"{args.report}: {error}") from error
    print(markdown(points), end="")
    if args.output is None:
        return
    write_report(args.output.with_suffix(".json"), points)
    args.output.with_suffix(".md").write_text(markdown(points))
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        curves[point.popularity].append((point.num_adapters, point.out_tok_s))
    try:
        plot_curves(
            curves, args.output.with_suffix(".svg"), x_label="adapters in use", y_label="output tok/s", log_x=True
        )
    except MatplotlibMissing as missing:
        print(f"no plot: {missing}")


if __name__ == "__main__":
    main()
