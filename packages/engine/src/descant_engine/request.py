"""A request inside the engine: token ids in, token ids out. Text never gets this far."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import NamedTuple

from descant_engine.pooling import PoolingParams
from descant_engine.sampling_params import SamplingParams
from descant_engine.seeds import sample_seed
from descant_engine.share import Share


class RequestStatus(IntEnum):
    """Moved by `scheduler.unfinished` and nobody else. Everything from FINISHED on is over."""

    WAITING_FOR_GRAMMAR = 0
    WAITING = 1
    WAITING_FOR_ADAPTER = 2
    RUNNING = 3
    PREEMPTED = 4
    FINISHED = 5


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    UNMET = "unmet"
    """Its output could not keep to its grammar: the request's own doing."""


class Owner(NamedTuple):
    """Whose a request is, and how it stands beside others'."""

    tenant: str = ""
    """Tenants share the engine fairly; so do one tenant's adapters."""
    tenant_salt: str = ""
    """Requests of different salts never share prefix blocks."""
    priority: int = 0
    """Smaller is served earlier, whoever asks and whatever he has had; fairness rules within one priority."""


NOBODY = Owner()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One API call as the front hands it to the engine; nothing in it changes."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    adapter_digest: str | None = None
    """Names a registered adapter; None is the base model."""
    tenant: str = ""
    """This and the next two are its `Owner`'s."""
    tenant_salt: str = ""
    priority: int = 0
    sample_of: str | None = None
    """The id of a request with the same prompt, submitted before: this one waits until that one has computed the
    prompt, and then shares its blocks. Its own prompt is counted there."""
    pooling: PoolingParams | None = None
    """Asks for a vector instead of tokens; `params` means nothing then."""


class RequestTimes(NamedTuple):
    """A request's stations in the engine, in seconds of `time.monotonic`; None where it has not come so far."""

    arrived: float
    scheduled: float | None = None
    """Its first tokens were put into a step."""
    first_token: float | None = None
    """The first token was known."""
    finished: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """The scheduler's record of an EngineRequest. What counts its way through steps moves by the methods below and no
    other way; blocks are `KvCache`'s, the status is `UnfinishedRequests`', the adapter's slot the batch's.

    Invariants (known = prompt + output; scheduled = tokens whose KV is written or in a step on its way):

        0 <= num_computed_tokens <= num_known_tokens + num_inflight_samples
        num_inflight_samples = sampled tokens of steps that are under way, not yet in output_token_ids

    A draft token counts for neither before it is known to be right: its KV is written over if it is not.
    """

    spec: EngineRequest
    max_tokens: int
    """Resolved: min(params.max_tokens, room in the context)."""
    seed: int
    arrival_number: int = 0
    """Counts up with every request added: the first come is the first served, among equals."""
    stop_token_ids: tuple[int, ...] = ()
    """Every token that ends the request: eos unless ignored, and the client's own."""
    status: RequestStatus = RequestStatus.WAITING
    output_token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_inflight_samples: int = 0
    num_inflight_drafts: int = 0
    """Draft tokens that a step on its way checks; until then nobody knows what its next tokens are."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    num_preemptions: int = 0
    arrived: float = 0.0
    """This time and the two after it are `RequestTimes`'."""
    scheduled: float | None = None
    first_token: float | None = None
    num_steps_overtaken: int = 0
    """Steps in which a later request was admitted while nothing in the pool could be evicted for this one's adapter."""
    share: Share = field(init=False)
    """What is charged for its tokens; set when it joins the queue."""
    num_charged_tokens: int = 0
    """Its first so many tokens are paid for, or were found in the prefix cache."""
    adapter_slot: int = -1
    first_sample: "Request | None" = None
    """Who computes the prompt that this one shares; see `EngineRequest.sample_of`."""
    adapter_content: str | None = None
    """The adapter's identity, from the first admission on: by then its weights have been read."""
    finish_reason: FinishReason | None = None

    @property
    def request_id(self) -> str:
        return self.spec.request_id

    @property
    def num_known_tokens(self) -> int:
        return len(self.spec.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Known tokens and those being sampled right now."""
        return self.num_known_tokens + self.num_inflight_samples

    @property
    def is_finished(self) -> bool:
        return self.status >= RequestStatus.FINISHED

    @property
    def wants_whole_prompt(self) -> bool:
        """Every token's logits or hidden state is asked for, so none of the prompt may come from the prefix cache."""
        if self.spec.pooling is not None:
            return self.spec.pooling.needs_every_token
        return self.spec.params.prompt_logprobs is not None and not self.output_token_ids

    def enter(self, num_found_tokens: int, now: float) -> None:
        """Into the batch, with the KV of so many tokens found in the prefix cache."""
        self.num_computed_tokens = num_found_tokens
        if self.num_preemptions == 0:
            self.scheduled = now
            self.num_cached_tokens = self.num_charged_tokens = num_found_tokens

    def preempt(self) -> None:
        """Out of the batch again: what it has computed is lost."""
        self.num_computed_tokens = 0
        self.num_preemptions += 1

    def compute(self, num_tokens: int) -> bool:
        """Its next `num_tokens` are in a step, and count as computed from now on. True if they are all that are known,
        so that the step samples the one after them."""
        samples = self.num_computed_tokens + num_tokens == self.num_tokens
        self.num_computed_tokens += num_tokens
        self.num_inflight_samples += samples
        return samples

    def check_drafts(self, num_drafts: int) -> None:
        """The step that samples checks so many drafts beside."""
        self.num_inflight_drafts = num_drafts

    def land(self) -> None:
        """A step that sampled for it has ended."""
        self.num_inflight_samples -= 1

    def settle_drafts(self, num_right: int) -> None:
        """Of the drafts that the step checked so many were right: their KV stands, unless preemption has taken it."""
        if self.status is RequestStatus.RUNNING:
            self.num_computed_tokens += num_right
        self.num_inflight_drafts = 0

    def charge(self, num_tokens: int) -> int:
        """Its next `num_tokens` are paid for. Returns how many of them had not been."""
        num_new = max(self.num_computed_tokens + num_tokens - self.num_charged_tokens, 0)
        self.num_charged_tokens += num_new
        return num_new

    def times(self, finished: float | None = None) -> RequestTimes:
        return RequestTimes(self.arrived, self.scheduled, self.first_token, finished, self.num_preemptions)

    def known_token_ids(self) -> list[int]:
        return [*self.spec.prompt_token_ids, *self.output_token_ids]


def samples_of(request: EngineRequest) -> tuple[EngineRequest, ...]:
    """A request for each of `params.num_samples` outputs. They go to the engine in this order: the first computes the
    prompt, and its log-probabilities; the others, whose ids end with their number, share it.
    """
    params = request.params
    if params.num_samples == 1:
        return (request,)
    # The best of several are found by their log-probabilities.
    logprobs = 0 if params.logprobs is None and params.num_samples > params.n else params.logprobs
    first = replace(request, params=replace(params, n=1, best_of=None, logprobs=logprobs))
    return first, *(_sample(first, index) for index in range(1, params.num_samples))


def _sample(first: EngineRequest, index: int) -> EngineRequest:
    seed = None if first.params.seed is None else sample_seed(first.params.seed, index)
    return replace(
        first,
        request_id=f"{first.request_id}-{index}",
        params=replace(first.params, seed=seed, prompt_logprobs=None),
        sample_of=first.request_id,
    )


class TokenLogprobs(NamedTuple):
    """How likely the model found one token at its place, and which it found likeliest there. Natural logarithms."""

    token_id: int
    logprob: float
    rank: int
    """1 if it was the likeliest."""
    top: tuple[tuple[int, float], ...]
    """(token id, log-probability) of the likeliest ones, as many as were asked for, the likeliest first."""


class SampleLogprobs(NamedTuple):
    """What one step gave a request that asked for log-probabilities."""

    sampled: tuple[TokenLogprobs, ...] = ()
    """One for each token sampled, or none if they were not asked for."""
    prompt: tuple[TokenLogprobs, ...] = ()
    """With the request's first token, if asked for: one for each prompt token but the first."""

    def first(self, num_sampled: int) -> "SampleLogprobs":
        """Those of the first so many samples, and of the prompt."""
        return self if len(self.sampled) <= num_sampled else self._replace(sampled=self.sampled[:num_sampled])


NO_LOGPROBS = SampleLogprobs()


class TokenDelta(NamedTuple):
    """What one step gave one request."""

    request_id: str
    token_ids: Sequence[int]
    finish_reason: FinishReason | None
    stop_token_id: int | None
    """The token that ended the request, when one did; it is the last of `token_ids`."""
    num_cached_tokens: int
    error: str | None = None
    """With FinishReason.ERROR and UNMET: what went wrong, for the client."""
    logprobs: SampleLogprobs = NO_LOGPROBS
    times: RequestTimes | None = None
    """With the first token and with the end."""
    pooled: bytes | None = None
    """The vector that was asked for, float32, with which the request ends."""
