"""The gateway's figures on a page: the median slice counts, and every slice is kept."""

from dataclasses import asdict

import gateway_report
from gateway_cpu import Answered, Load
from gateway_report import Figures, Streams, page, summary


def load(cpu_ms: float, connections: int = 16) -> Load:
    return Load(connections, requests=100, errors=0, rps=50.0, p50_ms=2.0, p99_ms=4.0, cpu_ms_per_request=cpu_ms)


def figures(*cpu_ms: float) -> Figures:
    return Figures(
        loads=[load(1.0, 1), load(0.7, 64)],
        slices=[load(it) for it in cpu_ms],
        streams=[Streams(1, 10, 2.0, 1.0, 0.02), Streams(16, 100, 2.0, 1.0, 0.02)],
        idle_cpu_ms_per_s=2.0,
        rss_mb=140.0,
        ready_s=1.0,
    )


OURS, THEIRS = figures(0.9, 0.5, 0.6), figures(8.0, 20.0, 9.0)
DIRECT = Answered(requests=100, errors=0, seconds=1.0, p50_ms=0.5, p99_ms=1.0)


def test_the_median_slice_counts() -> None:
    found = summary(OURS, THEIRS, DIRECT)
    assert (found["cpu_ms_per_request"], found["litellm_cpu_ms_per_request"]) == (0.6, 9.0)
    assert found["litellm_ratio"] == 15.0


def test_every_slice_is_kept() -> None:
    assert [it["cpu_ms_per_request"] for it in asdict(OURS)["slices"]] == [0.9, 0.5, 0.6]
    assert summary(OURS, THEIRS, DIRECT)["litellm_cpu_ms_of_slices"] == [8.0, 20.0, 9.0]


def test_the_page_tells_how_far_the_slices_lie_apart_and_points_to_the_notes() -> None:
    names = ("litellm_version", "command", "commit", "date", "machine", "load_average_before", "load_average_after")
    text = page({**summary(OURS, THEIRS, DIRECT), **dict.fromkeys(names, "?")})
    assert "0.5 to 0.9 ms a request, LiteLLM's 8.0 to 20.0" in text
    assert f"a reply of {gateway_report.NUM_CHUNKS} chunks" in text
    assert "(gateway-notes.md)" in text
