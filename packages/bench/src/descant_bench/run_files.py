"""Reads the JSON that runs of the recorded cases leave: ours (`throughput`), and vLLM's."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

FULL_SERIES = 3
"""So many runs have a median worth the name."""


@dataclass(frozen=True, slots=True)
class CaseRuns:
    """One case's throughput, run by run."""

    out_tok_s: tuple[float, ...]
    total_tok_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RunFile:
    path: Path
    cases: Mapping[str, CaseRuns]
    commit: str | None
    date: str | None
    command: str | None
    options: Mapping[str, Any]
    startup_s: float | None
    is_peer: bool


def read_run(path: Path) -> RunFile:
    """Raises ValueError if the file is of neither kind."""
    content = json.loads(path.read_text())
    if isinstance(content, dict) and isinstance(content.get("cases"), dict):
        return _own_run(path, content)
    if isinstance(content, dict) and any("#" in key for key in content):
        return _peer_run(path, content)
    raise ValueError(
        f"{path} is neither a report of `descant bench throughput` (an object with cases) nor one of the peer's runner "
        "(an object with CASE#RUN)"
    )


def _own_run(path: Path, content: dict[str, Any]) -> RunFile:
    environment = content.get("environment", {})
    return RunFile(
        path=path,
        cases={name: _runs(case["runs"]) for name, case in content["cases"].items()},
        commit=environment.get("commit"),
        date=environment.get("date"),
        command=environment.get("command"),
        options=content.get("options", {}),
        startup_s=content.get("startup_s"),
        is_peer=False,
    )


def _peer_run(path: Path, content: dict[str, Any]) -> RunFile:
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for key, run in content.items():
        if "#" in key:
            runs[key.rsplit("#", 1)[0]].append(run)
    cases = {name: _runs(found) for name, found in runs.items()}
    return RunFile(path, cases, None, None, None, {}, content.get("startup_s"), is_peer=True)


def _runs(runs: list[dict[str, float]]) -> CaseRuns:
    return CaseRuns(tuple(run["out_tok_s"] for run in runs), tuple(run["total_tok_s"] for run in runs))


def typical(values: tuple[float, ...], *, is_peer: bool) -> float:
    """The median. Of a peer's series that is too short for one, the best: what its first run spent on warming up is
    not held against it."""
    return max(values) if is_peer and len(values) < FULL_SERIES else median(values)
