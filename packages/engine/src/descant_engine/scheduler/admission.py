"""What can be served at all, decided when a request arrives."""

from collections.abc import Mapping
from random import Random

from descant_engine.config import ResolvedConfig
from descant_engine.pooling import Task
from descant_engine.request import EngineRequest, Request


class RequestRefused(ValueError):
    """This engine can never serve the request; the message has the numbers."""


class QueueFull(ValueError):
    """Too many requests wait already; a later try may succeed."""


def accept(
    spec: EngineRequest, config: ResolvedConfig, pool_tokens: int, arrival_number: int, seeds: Random
) -> Request:
    """The scheduler's record of a request that fits, alone, into context and pool.

    `pool_tokens`: how many tokens' KV the pool holds beside the request's adapter.

    Raises:
        RequestRefused: the prompt, or the prompt and the output asked for, can never fit.
    """
    return Request(
        spec=spec,
        max_tokens=_max_tokens(spec, config, pool_tokens),
        seed=seeds.getrandbits(63) if spec.params.seed is None else spec.params.seed,
        arrival_number=arrival_number,
        stop_token_ids=_stop_token_ids(spec, config.eos_token_ids),
    )


def first_sample_of(spec: EngineRequest, requests: Mapping[str, Request]) -> Request | None:
    """The request whose prompt's blocks this one may share, if it is still under way and has the same ones."""
    first = None if spec.sample_of is None else requests.get(spec.sample_of)
    if first is None or _block_content(first.spec) != _block_content(spec):
        return None
    return first


def _block_content(spec: EngineRequest) -> tuple[tuple[int, ...], str | None, str]:
    return spec.prompt_token_ids, spec.adapter_digest, spec.tenant_salt


def _max_tokens(spec: EngineRequest, config: ResolvedConfig, pool_tokens: int) -> int:
    if spec.pooling is not None:
        _check_pooling(spec, config, pool_tokens)
        return 1  # nothing is sampled; the vector takes the token's place
    if Task.GENERATE not in config.tasks:
        raise RequestRefused("this model makes vectors or scores; it cannot generate")
    return _resolve_max_tokens(spec, config.max_model_len, pool_tokens)


def _check_pooling(spec: EngineRequest, config: ResolvedConfig, pool_tokens: int) -> None:
    num_tokens, budget = len(spec.prompt_token_ids), config.max_num_batched_tokens
    if config.pooling is None:
        raise RequestRefused("this model was not started to make vectors")
    if not 1 <= num_tokens <= config.max_model_len:
        raise RequestRefused(f"the input has {num_tokens} tokens, but this model takes 1 to {config.max_model_len}")
    if config.shape.encoder is not None and num_tokens > budget:
        raise RequestRefused(
            f"the input has {num_tokens} tokens, which an encoder computes in one step, but a step has"
            f" max_num_batched_tokens={budget}"
        )
    if num_tokens > pool_tokens:
        raise RequestRefused(f"the input has {num_tokens} tokens, but the engine's memory holds {pool_tokens}")


def _resolve_max_tokens(spec: EngineRequest, max_model_len: int, pool_tokens: int) -> int:
    num_prompt_tokens = len(spec.prompt_token_ids)
    if num_prompt_tokens == 0:
        raise RequestRefused("the prompt is empty; at least one token is needed to continue from")
    if num_prompt_tokens >= max_model_len:
        raise RequestRefused(
            f"the prompt has {num_prompt_tokens} tokens, but the context holds {max_model_len} and at least one must "
            "be left for the output"
        )
    # The last token's KV is never computed.
    pool_room = pool_tokens + 1 - num_prompt_tokens
    context_room = max_model_len - num_prompt_tokens
    wanted = min(spec.params.max_tokens or 1, context_room)
    if wanted > pool_room:
        beside = " beside its adapter" if spec.adapter_digest else ""
        raise RequestRefused(
            f"{num_prompt_tokens} prompt tokens and {wanted} output tokens can never fit: the engine's memory holds "
            f"{pool_tokens} tokens{beside}"
        )
    return min(spec.params.max_tokens or context_room, context_room, pool_room)


def _stop_token_ids(spec: EngineRequest, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    eos = () if spec.params.ignore_eos else eos_token_ids
    return tuple(dict.fromkeys((*eos, *spec.params.stop_token_ids)))
