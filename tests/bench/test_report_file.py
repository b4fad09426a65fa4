"""A report holds what was measured, whatever it is made of."""

import argparse
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pytest

from descant_bench.report_file import add_report_options, write_report


class Kind(StrEnum):
    FAST = "fast"


class Point(NamedTuple):
    x: int
    y: float


@dataclass(frozen=True, slots=True)
class Part:
    kind: Kind
    points: tuple[Point, ...]


def test_dataclasses_become_objects_at_any_depth(tmp_path: Path) -> None:
    part = Part(Kind.FAST, (Point(1, 0.5),))
    written = {"kind": "fast", "points": [[1, 0.5]]}
    pairs = ((part, written), ({"a": [part]}, {"a": [written]}), ([part, None], [written, None]))
    for report, expected in pairs:
        write_report(tmp_path / "r.json", report)
        assert json.loads((tmp_path / "r.json").read_text()) == expected


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_report(tmp_path / "r.json", {"parser": object()})
    assert not (tmp_path / "r.json").exists()


def test_the_options_of_every_report(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_report_options(parser, "--output-json")
    args = parser.parse_args(["--output-json", str(tmp_path), "--commit", "abc"])
    assert (args.output, args.commit) == (tmp_path, "abc")
