"""Compares a run with one that was kept and says what moved; exits with 1 if something got slower, or is missing.

    python -m descant_bench.regression NEW.json docs/results/KEPT.json [--tolerance 0.03]

Both are reports of `descant bench throughput`, or both of `descant bench profile-steps`; the kept one may also be a
comparison that `descant bench compare` wrote. A case is slower if its median lies more than the tolerance below the
kept median and even its best run does not reach that median: one slow run among several is noise. A part of a step
counts if it takes at least a hundredth of the step, and is held to a tolerance of its own.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

from descant_bench.compare import SECONDS
from descant_bench.run_files import read_run
from descant_bench.targets import COUNTS_PROMPT_TOKENS

SMALLEST_SHARE = 0.01
"""Of the step: a part below it is not worth an alarm."""


class Verdict(StrEnum):
    SAME = "same"
    FASTER = "faster"
    SLOWER = "SLOWER"
    NOISY = "noisy"
    """Below the tolerance by the median, but the best run reaches what was kept: measure again."""
    MISSING = "MISSING"
    NEW = "new"


FAILURES = (Verdict.SLOWER, Verdict.MISSING)


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    verdict: Verdict
    kept: float | None
    new: float | None
    unit: str

    @property
    def line(self) -> str:
        if self.kept is None or self.new is None:
            return f"{self.verdict:<8}{self.name}"
        change = self.new / self.kept - 1
        return f"{self.verdict:<8}{self.name}: {self.kept:,.1f} -> {self.new:,.1f} {self.unit} ({change:+.1%})"


def compare_throughput(
    new: Mapping[str, tuple[float, ...]], kept: Mapping[str, tuple[float, ...]], tolerance: float
) -> list[Finding]:
    """Runs by case, in tokens a second: more is better."""
    return [_judge_case(name, new.get(name), kept.get(name), tolerance) for name in {**kept, **new}]


def compare_profiles(
    new: dict[str, Any], kept: dict[str, Any], tolerance: float, part_tolerance: float
) -> list[Finding]:
    """Raises ValueError if the two are of different workloads."""
    for field in ("phase", "batch", "prompt_tokens", "num_adapters"):
        if new["workload"][field] != kept["workload"][field]:
            raise ValueError(
                f"the profiles are of different workloads: {field} is {new['workload'][field]}, and was "
                f"{kept['workload'][field]}"
            )
    findings = [_judge_time("step", new["step_us"], kept["step_us"], tolerance)]
    least = SMALLEST_SHARE * kept["step_us"]
    for name in {**kept["parts"], **new["parts"]}:
        now, before = (profile["parts"].get(name, {}).get("us", 0.0) for profile in (new, kept))
        if max(now, before) >= least:
            findings.append(_judge_time(name, now, before, part_tolerance))
    return findings


def _judge_case(name: str, new: tuple[float, ...] | None, kept: tuple[float, ...] | None, tolerance: float) -> Finding:
    unit = "total tok/s" if name in COUNTS_PROMPT_TOKENS else "output tok/s"
    if not new or not kept:
        return Finding(name, Verdict.NEW if new else Verdict.MISSING, None, None, unit)
    now, before = median(new), median(kept)
    verdict = Verdict.SAME
    if now < before * (1 - tolerance):
        verdict = Verdict.NOISY if max(new) >= before else Verdict.SLOWER
    elif now > before * (1 + tolerance):
        verdict = Verdict.FASTER
    return Finding(name, verdict, before, now, unit)


def _judge_time(name: str, new: float, kept: float, tolerance: float) -> Finding:
    if not kept:
        return Finding(name, Verdict.NEW, None, None, "us")
    verdict = Verdict.SAME
    if new > kept * (1 + tolerance):
        verdict = Verdict.SLOWER
    elif new < kept * (1 - tolerance):
        verdict = Verdict.FASTER
    return Finding(name, verdict, kept, new, "us")


def read_series(path: Path) -> dict[str, tuple[float, ...]]:
    """Tokens a second, by case and run, of a report or a kept comparison."""
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return {row["workload"]: tuple(row["descant_runs"]) for row in content if row["unit"] != SECONDS}
    return dict(_cases(path))


def _cases(path: Path) -> Iterator[tuple[str, tuple[float, ...]]]:
    for name, case in read_run(path).cases.items():
        yield name, case.total_tok_s if name in COUNTS_PROMPT_TOKENS else case.out_tok_s


def _findings(args: argparse.Namespace) -> list[Finding]:
    new, kept = (json.loads(path.read_text()) for path in (args.new, args.kept))
    is_profile = [isinstance(content, dict) and "step_us" in content for content in (new, kept)]
    if all(is_profile):
        return compare_profiles(new, kept, args.tolerance, args.part_tolerance)
    if any(is_profile):
        raise ValueError("one file is a profile of steps and the other is not: give two of a kind")
    findings = compare_throughput(read_series(args.new), read_series(args.kept), args.tolerance)
    if args.only_measured:
        return [finding for finding in findings if finding.verdict is not Verdict.MISSING]
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, metavar="NEW.json")
    parser.add_argument("kept", type=Path, metavar="KEPT.json")
    parser.add_argument("--tolerance", type=float, default=0.03, help="of a case, or of a whole step")
    parser.add_argument("--part-tolerance", type=float, default=0.1, help="of one part of a step")
    parser.add_argument("--only-measured", action="store_true", help="cases that the new run leaves out are no failure")
    args = parser.parse_args()
    try:
        findings = _findings(args)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for finding in findings:
        print(finding.line)
    failures = [finding for finding in findings if finding.verdict in FAILURES]
    print(f"{len(failures)} of {len(findings)} slower or missing")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
