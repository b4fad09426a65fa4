"""Recorded requests: token ids, lengths, adapters and arrivals, the same for every engine that is measured.

A file has one JSON object a line:

    {"prompt_token_ids": [...], "max_tokens": n, "adapter": number or null, "arrival_s": seconds, "group": "name",
     "tenant": "name"}

The last three may be left out: everything arrives at once, latencies are not reported by group, and there is one
tenant.
"""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LOWEST_TOKEN_ID = 1000
"""Below it lie the special tokens of some vocabularies."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    adapter: int | None = None
    arrival_s: float = 0.0
    """After the start of the run."""
    group: str | None = None
    """Whose latencies are reported together: "resident", "flood"."""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Popularity:
    """How often each adapter is asked for: the i-th in proportion to 1 / i^exponent. Zero is uniform."""

    exponent: float = 0.0

    def choose(self, num_requests: int, num_adapters: int, rng: random.Random) -> list[int]:
        weights = [1 / (rank + 1) ** self.exponent for rank in range(num_adapters)]
        return rng.choices(range(num_adapters), weights=weights, k=num_requests)

    @property
    def name(self) -> str:
        return f"zipf{self.exponent:g}" if self.exponent else "uniform"


def read_requests(path: Path) -> list[RecordedRequest]:
    """Raises ValueError, with file and line, for a line that is no request."""
    with path.open() as lines:
        return [_request(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def write_requests(path: Path, requests: Iterable[RecordedRequest]) -> None:
    with path.open("w") as file:
        for request in requests:
            file.write(json.dumps(_fields(request)) + "\n")


def random_requests(
    num_requests: int,
    prompt_tokens: int,
    max_tokens: int,
    *,
    vocab_size: int,
    adapters: Sequence[int | None] | None = None,
    seed: int = 0,
) -> list[RecordedRequest]:
    """Prompts of random token ids, all of one length; adapters[i] is request i's, None the base model."""
    rng = random.Random(seed)
    lowest = min(LOWEST_TOKEN_ID, vocab_size // 2)
    chosen = [None] * num_requests if adapters is None else adapters
    return [
        RecordedRequest(tuple(rng.randrange(lowest, vocab_size) for _ in range(prompt_tokens)), max_tokens, adapter)
        for adapter in chosen[:num_requests]
    ]


def _request(line: str, place: str) -> RecordedRequest:
    try:
        fields = json.loads(line)
        return RecordedRequest(
            tuple(fields["prompt_token_ids"]),
            fields["max_tokens"],
            fields.get("adapter"),
            fields.get("arrival_s", 0.0),
            fields.get("group"),
            fields.get("tenant", ""),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place} is no recorded request: {error!r}") from error


def _fields(request: RecordedRequest) -> dict[str, object]:
    fields: dict[str, object] = {
        "prompt_token_ids": request.prompt_token_ids,
        "max_tokens": request.max_tokens,
        "adapter": request.adapter,
    }
    if request.arrival_s:
        fields["arrival_s"] = request.arrival_s
    if request.group is not None:
        fields["group"] = request.group
    if request.tenant:
        fields["tenant"] = request.tenant
    return fields
