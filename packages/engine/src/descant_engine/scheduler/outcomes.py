"""What comes of a step, or of a move, for each request: its `TokenDelta`, and its end."""

from descant_engine.cache.adapter_cache import AdapterCache
from descant_engine.request import FinishReason, Request, RequestTimes, SampleLogprobs, TokenDelta
from descant_engine.scheduler.plan import AdapterEvent, AdapterMoveKind
from descant_engine.scheduler.sampled import append
from descant_engine.scheduler.unfinished import UnfinishedRequests
from descant_engine.speculation.speculation import Speculation


class Outcomes:
    """`now` is when the result came, on the scheduler's clock."""

    def __init__(self, unfinished: UnfinishedRequests, adapters: AdapterCache, speculation: Speculation | None) -> None:
        self._unfinished = unfinished
        self._adapters = adapters
        self._speculation = speculation

    def sampled(self, request: Request, token_ids: tuple[int, ...], logprobs: SampleLogprobs, now: float) -> TokenDelta:
        """One token, or several where drafts were right."""
        is_first = request.first_token is None
        if is_first:
            request.first_token = now
        num_drafted = request.num_inflight_drafts
        new = append(request, token_ids)
        if new.finish_reason is not None:
            self._unfinished.finish(request, new.finish_reason, now)
        if self._speculation is not None:
            self._speculation.follow(request, num_drafted, len(new.token_ids))
        return TokenDelta(
            request_id=request.request_id,
            token_ids=new.token_ids,
            finish_reason=new.finish_reason,
            stop_token_id=new.stop_token_id,
            num_cached_tokens=request.num_cached_tokens,
            logprobs=logprobs.first(len(new.token_ids)),
            times=_times(request, now) if is_first or request.is_finished else None,
        )

    def pooled(self, request: Request, vector: bytes, now: float) -> TokenDelta:
        """The vector that was asked for, with which the request ends."""
        request.first_token = now
        self._unfinished.finish(request, FinishReason.STOP, now)
        return TokenDelta(
            request_id=request.request_id,
            token_ids=(),
            finish_reason=request.finish_reason,
            stop_token_id=None,
            num_cached_tokens=request.num_cached_tokens,
            times=_times(request, now),
            pooled=vector,
        )

    def moved(self, event: AdapterEvent, now: float) -> list[TokenDelta]:
        """A failed load ends the requests that wait for it; a later request tries again."""
        self._adapters.apply(event)
        if event.error is None:
            if event.kind is AdapterMoveKind.LOAD_DEVICE:
                self._unfinished.unpark(event.digest)
            return []
        failed = self._unfinished.waiting.of_adapter(event.digest)
        for request in failed:
            self._unfinished.finish(request, FinishReason.ERROR, now)
        return [
            TokenDelta(r.request_id, (), r.finish_reason, None, r.num_cached_tokens, event.error, times=_times(r, now))
            for r in failed
        ]


def _times(request: Request, now: float) -> RequestTimes:
    return request.times(now if request.is_finished else None)
