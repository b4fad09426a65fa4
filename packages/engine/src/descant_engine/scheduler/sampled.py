"""What became of samples: one token each for most requests, several for one whose drafts were right."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from descant_engine.request import FinishReason, Request

FIRST, SECOND = itemgetter(0), itemgetter(1)


class Appended(NamedTuple):
    token_ids: tuple[int, ...]
    """Those of the samples that became output: none beyond the request's end."""
    finish_reason: FinishReason | None
    stop_token_id: int | None


def by_request(sampled: Iterable[tuple[str, int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Samples of one request stand side by side."""
    for request_id, samples in groupby(sampled, FIRST):
        yield request_id, tuple(map(SECOND, samples))


def append(request: Request, token_ids: tuple[int, ...]) -> Appended:
    """Adds the samples to the output, up to the first that ends it, and leaves the request's end to the caller. All but
    the last have been computed in the same step."""
    reason = None
    num_taken = 0
    while reason is None and num_taken < len(token_ids):
        request.output_token_ids.append(token_ids[num_taken])
        num_taken += 1
        reason = _end_with(request, token_ids[num_taken - 1])
    request.settle_drafts(num_taken - 1)
    stop_token_id = token_ids[num_taken - 1] if reason is FinishReason.STOP else None
    return Appended(token_ids[:num_taken], reason, stop_token_id)


def _end_with(request: Request, token_id: int) -> FinishReason | None:
    num_tokens = len(request.output_token_ids)
    if token_id in request.stop_token_ids and num_tokens >= request.spec.params.min_tokens:
        return FinishReason.STOP
    return FinishReason.LENGTH if num_tokens >= request.max_tokens else None
