"""Health probes, against a real server; and requests in flight, which are the breaker's trial or not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from descant_gateway.catalogue.snapshot import Backend, Catalogue
from descant_gateway.routing.backends import Backends
from descant_gateway.routing.breaker import FAILURES_IN_A_ROW

NAME = "engine"
PROBE_TIMEOUT_S = 0.1


@dataclass
class Probed:
    """A backend, its server, and what the gateway makes of it. Nothing probes but the test."""

    runner: web.AppRunner
    backends: Backends
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200

    async def show_ready(self, request: web.Request) -> web.Response:
        await self.answers.wait()
        return web.Response(status=self.status)

    async def probe(self) -> bool:
        """Whether it is healthy then."""
        await self.backends.probe_all()
        return self.backends.state(NAME).is_healthy


@pytest.fixture
async def probed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Probed]:
    monkeypatch.setattr("descant_gateway.routing.backends._PROBE_TIMEOUT_S", PROBE_TIMEOUT_S)
    app = web.Application()
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    catalogue = Catalogue(version=1)
    probed = Probed(runner, Backends(lambda: catalogue, connect_timeout_s=1.0, health_interval_s=3600.0))
    probed.answers.set()
    app.router.add_get("/ready", probed.show_ready)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    catalogue = Catalogue(version=2, backends={NAME: Backend(name=NAME, base_url=f"http://127.0.0.1:{port}")})
    await probed.backends.start()
    yield probed
    await probed.backends.close()
    await runner.cleanup()


async def test_one_probe_without_an_answer_in_time_takes_nobody_out(probed: Probed) -> None:
    for _ in range(3):
        probed.answers.clear()
        assert await probed.probe()
        probed.answers.set()
        assert await probed.probe()


async def test_two_in_a_row_take_it_out_and_an_answer_brings_it_back(probed: Probed) -> None:
    probed.answers.clear()
    assert [await probed.probe() for _ in range(3)] == [True, False, False]
    probed.answers.set()
    assert await probed.probe()
    probed.answers.clear()
    assert await probed.probe(), "counted anew"


async def test_who_says_that_he_is_not_ready_is_out_at_once(probed: Probed) -> None:
    probed.status = 503
    assert not await probed.probe()


async def test_whose_port_nobody_listens_on_is_out_at_once(probed: Probed) -> None:
    await probed.runner.cleanup()
    assert not await probed.probe()


def test_a_stream_from_before_decides_nothing_for_the_trial() -> None:
    backend = Backend(name=NAME, base_url="http://127.0.0.1:1")
    backends = Backends(lambda: Catalogue(version=1), connect_timeout_s=1.0, health_interval_s=3600.0)
    breaker, long_after = backends.state(NAME).breaker, 1e12
    with backends.in_flight(backend) as told, backends.in_flight(backend):
        for _ in range(FAILURES_IN_A_ROW):
            with backends.in_flight(backend) as failing:
                failing.failed("status 500")
        with backends.in_flight(backend) as trial:
            told.succeeded()
            assert not breaker.is_closed
            with backends.in_flight(backend):
                pass  # another one, whose client leaves
            assert not breaker.allows(long_after), "the trial still runs"
            trial.failed("status 500")
        with backends.in_flight(backend):
            assert not breaker.allows(long_after)
        assert breaker.allows(long_after), "its client left"
        with backends.in_flight(backend) as trial:
            trial.succeeded()
            assert breaker.is_closed
    assert backends.state(NAME).num_in_flight == 0
