"""The faults: how each strikes, how it is healed, and what each class of request may see meanwhile.

What `may_see` does not name sees nothing of the fault: the answer it always gets.
"""

import asyncio
import resource
import signal
from abc import ABC, abstractmethod
from typing import ClassVar

import httpx
import psutil
from tests.system.faults.load import BROKEN, CUT, INFERENCE, LOST, REFUSED, TIMED_OUT
from tests.system.faults.plant import Plant

LIMITS_AWAY = "503 limits_unavailable"
DATABASE_AWAY = "503 service_unavailable"
SLOW_PACE_S = 0.1
JUMP_S = 3600.0

MaySee = dict[str, set[str]]


class Fault(ABC):
    name: ClassVar[str]
    may_see: ClassVar[MaySee] = {}
    must_see: ClassVar[MaySee] = {}
    """Without these the fault has not struck."""
    lost_with_process: ClassVar[bool] = False
    """A gateway dies: its open requests have no end to be booked."""
    is_exact: ClassVar[bool] = True
    """Afterwards the limits' counters equal the ledger. Else the next fault needs keys with counters of their own."""

    @abstractmethod
    async def strike(self, plant: Plant) -> None: ...

    @abstractmethod
    async def heal(self, plant: Plant) -> None: ...


class ValkeyPaused(Fault):
    name = "Valkey paused"
    may_see: ClassVar[MaySee] = {"budget": {LIMITS_AWAY}}
    must_see = may_see

    async def strike(self, plant: Plant) -> None:
        plant.valkey.signal(signal.SIGSTOP)

    async def heal(self, plant: Plant) -> None:
        plant.valkey.signal(signal.SIGCONT)


class ValkeyEmptied(Fault):
    name = "Valkey killed, back empty"
    may_see: ClassVar[MaySee] = {"budget": {LIMITS_AWAY}}
    must_see = may_see
    is_exact = False

    async def strike(self, plant: Plant) -> None:
        plant.valkey.signal(signal.SIGKILL)
        await asyncio.to_thread(plant.valkey.stop)

    async def heal(self, plant: Plant) -> None:
        await asyncio.to_thread(plant.valkey.start)


class PostgresStopped(Fault):
    name = "PostgreSQL stopped"
    may_see: ClassVar[MaySee] = {"admin read": {DATABASE_AWAY}, "admin write": {DATABASE_AWAY}}
    must_see = may_see

    async def strike(self, plant: Plant) -> None:
        await asyncio.to_thread(plant.postgres.stop)

    async def heal(self, plant: Plant) -> None:
        await asyncio.to_thread(plant.postgres.ensure_postgres_running)


class PostgresHung(Fault):
    """Its connections stay open, and nobody answers."""

    name = "PostgreSQL hung"
    may_see: ClassVar[MaySee] = {kind: {DATABASE_AWAY, TIMED_OUT} for kind in ("admin read", "admin write")}

    async def strike(self, plant: Plant) -> None:
        self._signal(plant, signal.SIGSTOP)

    async def heal(self, plant: Plant) -> None:
        self._signal(plant, signal.SIGCONT)

    @staticmethod
    def _signal(plant: Plant, number: int) -> None:
        postmaster = psutil.Process(plant.postgres.get_pid())
        for process in (postmaster, *postmaster.children(recursive=True)):
            process.send_signal(number)


class GatewayKilled(Fault):
    """Its balancer is the clients' own: they go on asking the dead one."""

    name = "gateway killed"
    may_see: ClassVar[MaySee] = {
        kind: {LOST, CUT, REFUSED} for kind in (*INFERENCE, "wrong key", "models", "admin read", "admin write")
    }
    must_see: ClassVar[MaySee] = {kind: {REFUSED} for kind in INFERENCE}
    lost_with_process = True
    is_exact = False

    async def strike(self, plant: Plant) -> None:
        await asyncio.to_thread(plant.gateways[-1].kill)

    async def heal(self, plant: Plant) -> None:
        plant.gateways[-1].start()
        await plant.gateways[-1].ready()


class EngineKilled(Fault):
    name = "engine killed"
    may_see: ClassVar[MaySee] = {kind: {BROKEN, "502 bad_gateway"} for kind in INFERENCE}

    async def strike(self, plant: Plant) -> None:
        await asyncio.to_thread(plant.engines[-1].kill)

    async def heal(self, plant: Plant) -> None:
        plant.engines[-1].start()
        await plant.engines[-1].ready()


class EngineHung(Fault):
    name = "engine hung"
    may_see: ClassVar[MaySee] = {kind: {BROKEN, "504 timeout"} for kind in INFERENCE}

    async def strike(self, plant: Plant) -> None:
        plant.engines[-1].signal(signal.SIGSTOP)

    async def heal(self, plant: Plant) -> None:
        plant.engines[-1].signal(signal.SIGCONT)


class EngineSlow(Fault):
    """Ten times slower; the deadline of the run is longer than that takes."""

    name = "engine slow"

    async def strike(self, plant: Plant) -> None:
        await _set_pace(plant, SLOW_PACE_S)

    async def heal(self, plant: Plant) -> None:
        await _set_pace(plant, 0.01)


class ClockJump(Fault):
    """The wall clocks of Valkey and the gateways go an hour ahead, then back again."""

    name = "clock jumps"
    is_exact = False

    async def strike(self, plant: Plant) -> None:
        plant.clock.shift(JUMP_S)

    async def heal(self, plant: Plant) -> None:
        plant.clock.shift(0.0)


class SpoolFull(Fault):
    """PostgreSQL is stopped, and no gateway may write a byte to any file."""

    name = "PostgreSQL stopped, spool's disk full"
    may_see = PostgresStopped.may_see
    must_see = may_see

    async def strike(self, plant: Plant) -> None:
        for gateway in plant.gateways:
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        await asyncio.to_thread(plant.postgres.stop)

    async def heal(self, plant: Plant) -> None:
        for gateway in plant.gateways:
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await asyncio.to_thread(plant.postgres.ensure_postgres_running)


async def _set_pace(plant: Plant, seconds: float) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.post(f"{plant.engines[-1].url}/pace", content=str(seconds))
        reply.raise_for_status()


FAULTS: tuple[Fault, ...] = (
    ValkeyPaused(),
    ValkeyEmptied(),
    PostgresStopped(),
    PostgresHung(),
    SpoolFull(),
    EngineKilled(),
    EngineHung(),
    EngineSlow(),
    ClockJump(),
    GatewayKilled(),
)
