"""What gateway_figures.py found out, as figures that can be compared and as a page."""

from dataclasses import dataclass
from typing import Any

from events_backend import PAUSE_S
from gateway_cpu import Answered, Load

NUM_CHUNKS, FEW_CHUNKS = 50, 2
SLICED_CONNECTIONS = 16
PROMISED = {
    "cpu_ms_per_request": 0.6,
    "litellm_ratio": 12.0,
    "cpu_ms_per_chunk": 0.02,
    "rss_mb": 150.0,
    "ready_s": 2.0,
}


@dataclass(frozen=True)
class Streams:
    """What a number of clients, each with one stream after the other, came to."""

    streams: int
    replies: int
    cpu_ms_per_reply: float
    """Of 50 chunks."""
    cpu_ms_per_short_reply: float
    """Of 2 chunks."""
    cpu_ms_per_chunk: float


@dataclass(frozen=True)
class Figures:
    loads: list[Load]
    """At one connection and at many."""
    slices: list[Load]
    """At sixteen connections, where a process has always something to do and no queue; in turns with the other's."""
    streams: list[Streams]
    idle_cpu_ms_per_s: float
    rss_mb: float
    ready_s: float

    @property
    def busy(self) -> Load:
        """The median slice, by its CPU; the lower of two in the middle."""
        return sorted(self.slices, key=lambda load: load.cpu_ms_per_request)[(len(self.slices) - 1) // 2]


def summary(ours: Figures, theirs: Figures, direct: Answered) -> dict[str, object]:
    """`direct` is the backend alone, without a gateway."""
    return {
        "cpu_ms_per_request": ours.busy.cpu_ms_per_request,
        "litellm_cpu_ms_per_request": theirs.busy.cpu_ms_per_request,
        "cpu_ms_of_slices": [load.cpu_ms_per_request for load in ours.slices],
        "litellm_cpu_ms_of_slices": [load.cpu_ms_per_request for load in theirs.slices],
        "litellm_ratio": round(theirs.busy.cpu_ms_per_request / ours.busy.cpu_ms_per_request, 1),
        "cpu_ms_per_chunk": ours.streams[0].cpu_ms_per_chunk,
        "cpu_ms_per_chunk_16_streams": ours.streams[-1].cpu_ms_per_chunk,
        "litellm_cpu_ms_per_chunk": theirs.streams[0].cpu_ms_per_chunk,
        "litellm_cpu_ms_per_chunk_16_streams": theirs.streams[-1].cpu_ms_per_chunk,
        "rss_mb": ours.rss_mb,
        "litellm_rss_mb": theirs.rss_mb,
        "ready_s": ours.ready_s,
        "litellm_ready_s": theirs.ready_s,
        "rps": ours.busy.rps,
        "litellm_rps": theirs.busy.rps,
        "added_p50_ms": round(ours.loads[0].p50_ms - direct.p50_ms, 2),
        "added_p99_ms": round(ours.loads[0].p99_ms - direct.p99_ms, 2),
        "litellm_added_p50_ms": round(theirs.loads[0].p50_ms - direct.p50_ms, 2),
        "litellm_added_p99_ms": round(theirs.loads[0].p99_ms - direct.p99_ms, 2),
    }


ROWS = (
    ("CPU for a request, 16 connections (ms)", "cpu_ms_per_request", "litellm_cpu_ms_per_request", "<= 0.6"),
    ("... LiteLLM's over ours", "litellm_ratio", None, ">= 12"),
    ("CPU for a chunk, one stream at a time (ms)", "cpu_ms_per_chunk", "litellm_cpu_ms_per_chunk", "<= 0.02"),
    ("... 16 streams at once", "cpu_ms_per_chunk_16_streams", "litellm_cpu_ms_per_chunk_16_streams", "<= 0.02"),
    ("memory of the process after it all (MB)", "rss_mb", "litellm_rss_mb", "<= 150"),
    ("from its start to ready (s)", "ready_s", "litellm_ready_s", "<= 2"),
    ("requests a second of one process, 16 connections", "rps", "litellm_rps", ""),
    ("latency added to the backend's, median of one connection (ms)", "added_p50_ms", "litellm_added_p50_ms", ""),
    ("... 99th percentile", "added_p99_ms", "litellm_added_p99_ms", ""),
)


def page(result: dict[str, Any]) -> str:
    slices, their_slices = result["cpu_ms_of_slices"], result["litellm_cpu_ms_of_slices"]
    spans = f"{min(slices)} to {max(slices)} ms a request, LiteLLM's {min(their_slices)} to {max(their_slices)}"
    rows = "\n".join(
        f"| {what} | {result[ours]} | {'' if theirs is None else result[theirs]} | {promised} |"
        for what, ours, theirs, promised in ROWS
    )
    before, after = result["load_average_before"], result["load_average_after"]
    where = f"Commit {result['commit']}, {result['date']}, {result['machine']}, load average {before}, then {after}"
    return f"""# The gateway beside LiteLLM

One process each, loaded in turns in one run. Descant with everything on: HMAC keys, limits at four levels in Valkey,
routing, the ledger in PostgreSQL, metrics, a JSON log line. LiteLLM {result["litellm_version"]} with a master key and
no database.

| | Descant | LiteLLM | promised |
|---|---:|---:|---:|
{rows}

    {result["command"]}

{where} (the run itself makes 2 to 3).

Whole replies are nginx's, asked for by wrk; at 16 connections in {len(slices)} slices each, in turns, of which the
median counts: {spans}. Chunks come {PAUSE_S * 1000:.0f} ms apart, each in a write of its own; a
chunk's cost is a reply of {NUM_CHUNKS} chunks less one of {FEW_CHUNKS}, with what the idle process uses taken off. A
process that serves nothing but one stream wakes up for every chunk, with cold caches; sixteen streams share that. Every
load is in [gateway.json](gateway.json). Where a chunk's CPU goes, what was tried, and what the system calls alone cost:
[gateway-chunk.md](gateway-chunk.md). What earlier runs gave: [gateway-notes.md](gateway-notes.md).
"""
