"""An engine that dies between a call's parts: what it had begun must not look as if nobody had it."""

from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from descant_engine.async_engine import AsyncEngine
from descant_engine.config import EngineConfig
from descant_engine.request import NOBODY
from descant_engine.sampling_params import SamplingParams
from descant_engine.serving.engine_client import EngineDead
from descant_engine.serving.request_stream import OutputBuffer, RequestStream
from descant_server.config import ServerConfig
from descant_server.generation import collect, generate
from descant_server.pooling import PoolingCall, pool
from descant_server.service import Service
from descant_server.translate import EngineCall
from descant_wire.errors import ApiError


class DyingEngine:
    """Takes so many requests, and is dead for the next."""

    def __init__(self, takes: int) -> None:
        self._left = takes

    @property
    def is_healthy(self) -> bool:
        return self._left > 0

    async def submit_pooling(self, *_: object, **__: object) -> RequestStream:
        if not self._left:
            raise EngineDead("killed")
        self._left -= 1
        return RequestStream("request", OutputBuffer(num_prompt_tokens=1), abandon=lambda: None)

    async def submit_samples(self, *_: object, **__: object) -> tuple[RequestStream, ...]:
        return (await self.submit_pooling(),)


def service_with(takes: int) -> Service:
    service = Service(ServerConfig(engine=EngineConfig(model="m")))
    service._engine = cast(AsyncEngine, DyingEngine(takes))
    return service


async def complete(service: Service) -> None:
    call = EngineCall(prompts=["a", "b"], prompt_field="prompt", params=SamplingParams(), adapter=None, owner=NOBODY)
    await collect(generate(service, call, "call", "charge"), 2)


async def embed(service: Service) -> None:
    call = PoolingCall(inputs=["a", "b"], input_field="input", keep_first=None, adapter=None, owner=NOBODY)
    await pool(service, call, "call", "charge")


@pytest.mark.parametrize("ask", [complete, embed])
@pytest.mark.parametrize(("takes", "status", "code"), [(0, 503, "engine_dead"), (1, 500, "engine_died")])
async def test_what_an_engine_had_begun_is_told_from_what_it_had_not(
    ask: Callable[[Service], Awaitable[None]], takes: int, status: int, code: str
) -> None:
    with pytest.raises(ApiError) as raised:
        await ask(service_with(takes))
    assert (raised.value.status, raised.value.detail.code) == (status, code)
