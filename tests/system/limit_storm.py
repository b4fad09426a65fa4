"""Three gateway processes, hundreds of clients, random limits, crashes and clients that leave; and a watcher of limits.

Nothing here is simulated: real processes, PostgreSQL, Valkey and sockets. The backend answers with fewer tokens than
were reserved, and remembers what it did for whom. `Storm.run` returns what was found; `violations` has to be empty.
"""

import asyncio
import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import redis
import redis.asyncio
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

ADMIN_KEY = "an admin key of the limit storm"
PRICE = {"input": 3_000_000, "cached": 300_000, "output": 15_000_000}
LEASE_S = 3.0
KILLED = 2
"""The replica that is killed. The last team's clients alone use it."""
Json = dict[str, Any]


@dataclass
class Served:
    key: str
    at: float
    tokens: int


@dataclass
class Upstream:
    """Says of each key, team and organization how many requests it had at once at most."""

    chance: random.Random
    url: str = ""
    running: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    served: list[Served] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """What it does counts as over before its last bytes leave: the gateway may send the next request at once."""
        fields = await request.json()
        owners = json.loads(fields["user"])
        self._count(owners)
        num_tokens = self.chance.randint(0, fields["max_tokens"])
        response = web.StreamResponse(headers={"content-type": "application/json"})
        try:
            if fields.get("stream"):
                response = web.StreamResponse(headers={"content-type": "text/event-stream"})
                await self._stream(request, response, num_tokens)
            else:
                await asyncio.sleep(self.chance.uniform(0, 0.15))
        except ConnectionError:  # its client has left
            return response
        finally:
            self.running.subtract(owners)
        self.served.append(Served(owners[0], time.monotonic(), num_tokens))
        with contextlib.suppress(ConnectionError):
            await self._finish(request, response, num_tokens)
        return response

    def _count(self, owners: list[str]) -> None:
        self.running.update(owners)
        for owner in owners:
            self.most[owner] = max(self.most[owner], self.running[owner])

    async def _stream(self, request: web.Request, response: web.StreamResponse, num_tokens: int) -> None:
        await response.prepare(request)
        for number in range(num_tokens):
            await asyncio.sleep(self.chance.uniform(0, 0.01))
            await response.write(b'data: {"choices":[{"delta":{"content":"t%d"}}]}\n\n' % number)

    async def _finish(self, request: web.Request, response: web.StreamResponse, num_tokens: int) -> None:
        cached = self.chance.randint(0, 3)
        usage = {
            "prompt_tokens": 4,
            "completion_tokens": num_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        last = json.dumps({"choices": [], "usage": usage}).encode()
        if response.prepared:
            last = b"data: " + last + b"\n\ndata: [DONE]\n\n"
        else:
            await response.prepare(request)
        await response.write(last)
        await response.write_eof()


@contextlib.asynccontextmanager
async def running_upstream(chance: random.Random) -> AsyncIterator[Upstream]:
    upstream = Upstream(chance)
    app = web.Application()
    app.router.add_post("/v1/completions", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield upstream
    finally:
        await runner.cleanup()


@dataclass
class Replica:
    number: int
    env: dict[str, str]
    log: Path
    url: str = ""
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "descant_gateway", "--port", str(port), "--log-level", "warning"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                command, env=self.env, stdout=output, stderr=subprocess.STDOUT
            )
        async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/ready")).status_code == 200:
                        return
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self) -> None:
        if self.process is not None:
            self.process.wait(timeout=40)


@dataclass
class LimitUnderTest:
    """One limit, as the database and Valkey know it."""

    level: str
    owner: UUID
    kind: str
    capacity: int
    organization: UUID

    @property
    def key(self) -> str:
        """Of its counter in Valkey."""
        return f"descant:{{{self.organization.hex}}}:{self.kind}:{self.owner.hex}:"

    @property
    def is_bucket(self) -> bool:
        return self.kind.endswith("_minute")


@dataclass
class Tenant:
    name: str
    api_key: str
    key_id: UUID
    team_id: UUID
    replicas: tuple[int, ...]
    is_patient: bool
    """Its clients never leave: so the backend's count of what runs is never behind the gateway's."""


@dataclass
class Report:
    seconds: float
    num_clients: int
    num_limits: int = 0
    num_looks: int = 0
    """Looks of the watcher at all counters."""
    statuses: dict[str, int] = field(default_factory=dict)
    num_left: int = 0
    """Clients that went before their answer was complete."""
    num_ledger_rows: int = 0
    num_sums_compared: int = 0
    """Limits whose settled sum was compared with the ledger, exactly."""
    tokens_settled: int = 0
    microdollars_settled: int = 0
    drift_of_killed_tokens: int = 0
    """What the killed replica had settled and not yet written to the ledger."""
    leases_back_s: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass
class Storm:
    postgres_url: str
    valkey_url: str
    folder: Path
    seconds: float
    num_clients: int = 200
    num_replicas: int = 3
    seed: int = 1
    restarts: bool = True
    """Whether the killed replica comes back."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.report = Report(self.seconds, self.num_clients)
        self.statuses: Counter[str] = Counter()
        self.tenants: list[Tenant] = []
        self.limits: list[LimitUnderTest] = []
        self.is_over = False
        self.killed_at = 0.0

    async def run(self) -> Report:
        async with running_upstream(self.chance) as self.upstream:
            self.replicas = [
                Replica(n, self._env(n), self.folder / f"gateway-{n}.log") for n in range(self.num_replicas)
            ]
            try:
                await asyncio.gather(*(replica.start() for replica in self.replicas))
                await self._make_tenants()
                await self._storm()
                await self._leases_come_back()
            finally:
                for replica in self.replicas:
                    replica.stop()
                for replica in self.replicas:
                    await asyncio.to_thread(replica.wait)
            await self._compare_sums()
        self.report.statuses = dict(sorted(self.statuses.items()))
        return self.report

    def _env(self, number: int) -> dict[str, str]:
        return dict(os.environ) | {
            "DESCANT_DATABASE_URL": self.postgres_url,
            "DESCANT_VALKEY_URL": self.valkey_url,
            "DESCANT_KEY_PEPPER": "a-pepper-for-the-storm-only-32-characters",
            "DESCANT_ADMIN_KEY": ADMIN_KEY,
            "DESCANT_LEDGER_SPOOL_DIR": str(self.folder / f"spool-{number}"),
            "DESCANT_LIMIT_LEASE_S": str(LEASE_S),
            "DESCANT_VALKEY_TIMEOUT_S": "5",
        }

    async def _make_tenants(self) -> None:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with httpx.AsyncClient(
            base_url=f"{self.replicas[0].url}/admin/v1", headers=headers, timeout=30, trust_env=False
        ) as admin:
            await _send(admin, "PUT", "/backends", {"name": "b", "base_url": self.upstream.url})
            await _send(admin, "PUT", "/models", {"name": "m", "backends": ["b"]})
            await _send(admin, "PUT", "/prices", {"model": "m", **PRICE})
            async with _database(self.postgres_url) as connection:
                organization: UUID = await connection.fetchval("SELECT id FROM organizations")
            await self._limit(admin, "organization", organization, organization)
            for number in range(3):
                team = await _send(admin, "POST", "/teams", {"name": f"team-{number}"})
                await self._limit(admin, "team", UUID(team["id"]), organization)
                for key in range(3):
                    await self._make_key(admin, team, f"key-{number}-{key}", organization, number)
        async with asyncio.timeout(20):
            while not await self._all_know():  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _make_key(self, admin: httpx.AsyncClient, team: Json, name: str, organization: UUID, number: int) -> None:
        made = await _send(admin, "POST", "/keys", {"team_id": team["id"], "name": name})
        await self._limit(admin, "key", UUID(made["id"]), organization)
        replicas = (KILLED, 0) if number == 2 else (0, 1)
        self.tenants.append(Tenant(name, made["api_key"], UUID(made["id"]), UUID(team["id"]), replicas, number == 0))

    async def _limit(self, admin: httpx.AsyncClient, level: str, owner: UUID, organization: UUID) -> None:
        """Some of each kind; loose enough that something runs, tight enough that they bind."""
        scale = {"organization": 9, "team": 4, "key": 1}[level]
        ranges = {
            "requests_per_minute": (60, 600),
            "tokens_per_minute": (3000, 20_000),
            "tokens_per_day": (2000, 20_000),
            "concurrent_requests": (2, 8),
            "money_per_day": (20_000, 200_000),
            "money_per_week": (40_000, 300_000),
            "money_per_month": (40_000, 400_000),
        }
        always = ["concurrent_requests", "tokens_per_day", "money_per_month"]
        kinds = {*always, *self.chance.sample(sorted(ranges), 2)}
        for kind in sorted(kinds):
            capacity = self.chance.randint(*ranges[kind]) * scale
            limit = {"level": level, "owner_id": str(owner), "kind": kind, "capacity": capacity}
            await _send(admin, "PUT", "/limits", limit)
            self.limits.append(LimitUnderTest(level, owner, kind, capacity, organization))
        self.report.num_limits = len(self.limits)

    async def _all_know(self) -> bool:
        """Every replica knows the last key and its limits."""
        headers = {"authorization": f"Bearer {self.tenants[-1].api_key}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            replies = [await client.get(f"{replica.url}/v1/limits") for replica in self.replicas]
        expected = sum(limit.owner in self._owners(self.tenants[-1]) for limit in self.limits)
        return all(reply.status_code == 200 and len(reply.json()["limits"]) == expected for reply in replies)

    def _owners(self, tenant: Tenant) -> tuple[UUID, ...]:
        return tenant.key_id, tenant.team_id, self.limits[0].organization

    # The storm

    async def _storm(self) -> None:
        started = time.monotonic()
        watcher = asyncio.create_task(self._watch())
        connector = TCPConnector(limit=0)
        async with ClientSession(connector=connector, timeout=ClientTimeout(total=30), trust_env=False) as session:
            clients = [asyncio.create_task(self._client(session, number)) for number in range(self.num_clients)]
            await asyncio.sleep(self.seconds * 0.4)
            self.killed_at = time.monotonic()
            self.replicas[KILLED].stop(signal.SIGKILL)
            await asyncio.to_thread(self.replicas[KILLED].wait)
            await asyncio.sleep(max(0.0, started + self.seconds * 0.7 - time.monotonic()))
            if self.restarts:
                await self.replicas[KILLED].start()
            await asyncio.sleep(max(0.0, started + self.seconds - time.monotonic()))
            self.is_over = True
            await asyncio.gather(*clients)
        await watcher

    async def _client(self, session: ClientSession, number: int) -> None:
        tenant = self.tenants[number % len(self.tenants)]
        owners = json.dumps([str(owner) for owner in self._owners(tenant)])
        while not self.is_over:
            stream, patience = self.chance.random() < 0.5, self.chance.choice((0.05, 0.2, 30.0, 30.0))
            patience = 30.0 if tenant.is_patient else patience
            body = {"model": "m", "prompt": "x" * 20, "max_tokens": self.chance.randint(1, 40), "stream": stream}
            url = self.replicas[self.chance.choice(tenant.replicas)].url
            try:
                async with asyncio.timeout(patience):
                    await self._ask(session, url, tenant, body | {"user": owners})
                await asyncio.sleep(self.chance.uniform(0, 0.2))
            except TimeoutError:
                self.report.num_left += 1
            except (ClientError, OSError):
                self.statuses["connection lost"] += 1
                await asyncio.sleep(0.1)

    async def _ask(self, session: ClientSession, url: str, tenant: Tenant, body: Json) -> None:
        headers = {"authorization": f"Bearer {tenant.api_key}"}
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as reply:
            self.statuses[str(reply.status)] += 1
            await reply.read()
        if reply.status == 429:
            await asyncio.sleep(self.chance.uniform(0.05, 0.5))

    async def _watch(self) -> None:
        """In a process of its own, which has nothing else to do than to look."""
        watched = {limit.key: limit.capacity for limit in self.limits}
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, self.valkey_url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(watched).encode() + b"\n")
        while not self.is_over:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            found, _ = await process.communicate(b"end\n")
        seen = json.loads(found)
        self.report.num_looks += seen["looks"]
        self.report.violations += seen["violations"]

    # Afterwards

    async def _leases_come_back(self) -> None:
        """Of the killed replica too: within a lease, and a little."""
        started = time.monotonic()
        headers = [{"authorization": f"Bearer {tenant.api_key}"} for tenant in self.tenants]
        async with (
            redis.asyncio.Redis.from_url(self.valkey_url) as valkey,
            httpx.AsyncClient(trust_env=False) as client,
        ):
            while time.monotonic() - started < 3 * LEASE_S:
                await client.get(f"{self.replicas[0].url}/v1/limits", headers=headers[0])  # any look reaps
                if not [key async for key in valkey.scan_iter("*:leases")] and not await self._reserved(valkey):
                    break
                await asyncio.sleep(0.1)
            else:
                self.report.violations.append(f"still reserved: {await self._reserved(valkey)}")
        self.report.leases_back_s = round(time.monotonic() - started, 2)
        patient = {owner for tenant in self.tenants if tenant.is_patient for owner in self._owners(tenant)[:2]}
        for limit in self.limits:
            if limit.owner not in patient or limit.kind != "concurrent_requests":
                continue
            if self.upstream.most[str(limit.owner)] > limit.capacity:
                self.report.violations.append(f"{limit}: the backend saw {self.upstream.most[str(limit.owner)]}")

    async def _reserved(self, valkey: "redis.asyncio.Redis") -> list[str]:
        limits = [limit for limit in self.limits if not limit.is_bucket]
        return [f"{limit}" for limit in limits if int(await valkey.hget(limit.key, "reserved") or 0)]

    async def _compare_sums(self) -> None:
        """What the counters settled is what the ledger holds. Exactly, but for what died unwritten with a process."""
        async with _database(self.postgres_url) as connection:
            rows = await connection.fetch(
                "SELECT key_id, team_id, organization_id, prompt_tokens + completion_tokens AS tokens,"
                " cost_microdollars AS money FROM usage_ledger"
            )
        self.report.num_ledger_rows = len(rows)
        sums: defaultdict[tuple[UUID, str], int] = defaultdict(int)
        for row in rows:
            for owner in (row["key_id"], row["team_id"], row["organization_id"]):
                sums[owner, "tokens"] += row["tokens"]
                sums[owner, "money"] += row["money"]
        exact = {
            owner for tenant in self.tenants if KILLED not in tenant.replicas for owner in self._owners(tenant)[:2]
        }
        async with redis.asyncio.Redis.from_url(self.valkey_url) as valkey:
            for limit in self.limits:
                unit = limit.kind.partition("_")[0]
                if limit.is_bucket or unit == "concurrent":
                    continue
                settled = int(await valkey.hget(limit.key, "settled") or 0)
                self._compare(limit, unit, settled, sums[limit.owner, unit], is_exact=limit.owner in exact)

    def _compare(self, limit: LimitUnderTest, unit: str, settled: int, in_ledger: int, *, is_exact: bool) -> None:
        if is_exact:
            self.report.num_sums_compared += 1
        if limit.level == "organization" and unit == "tokens":
            self.report.tokens_settled = settled
        if limit.level == "organization" and limit.kind == "money_per_month":
            self.report.microdollars_settled = settled
        drift = settled - in_ledger
        if limit.level == "organization" and unit == "tokens":
            self.report.drift_of_killed_tokens = drift
        if (is_exact and drift) or not 0 <= drift <= self._unwritten(unit):
            self.report.violations.append(f"{limit}: settled {settled}, in the ledger {in_ledger}")

    def _unwritten(self, unit: str) -> int:
        """At most what the killed replica served in its last moments: its ledger writes every quarter of a second."""
        keys = {str(tenant.key_id) for tenant in self.tenants if KILLED in tenant.replicas}
        late = [each for each in self.upstream.served if each.key in keys and -1.0 < each.at - self.killed_at < 0.1]
        tokens = sum(4 + each.tokens for each in late) + 44 * self.num_clients // 3
        return tokens if unit == "tokens" else tokens * PRICE["output"] // 1_000_000


async def _send(admin: httpx.AsyncClient, method: str, path: str, body: Json) -> Json:
    reply = await admin.request(method, path, json=body)
    assert reply.is_success, reply.text
    answer: Json = reply.json()
    return answer


@contextlib.asynccontextmanager
async def _database(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def watch(valkey_url: str) -> None:
    """Looks at every counter all the time until a line comes: reserved and settled may never be more than the limit."""
    capacities: dict[str, int] = json.loads(sys.stdin.readline())
    violations, looks = [], 0
    with redis.Redis.from_url(valkey_url) as valkey:
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            pipeline = valkey.pipeline(transaction=True)
            for key in capacities:
                pipeline.hgetall(key)
            for (key, capacity), stored in zip(capacities.items(), pipeline.execute(), strict=True):
                if stored and _left(stored, capacity) < -1e-3:
                    violations.append(f"{key} (limit {capacity}) was at {stored}")
            looks += 1
    print(json.dumps({"looks": looks, "violations": violations[:20]}))


def _left(stored: dict[bytes, bytes], capacity: int) -> float:
    if b"level" in stored:
        return float(stored[b"level"])
    return capacity - int(stored[b"reserved"]) - int(stored[b"settled"])


if __name__ == "__main__":
    watch(sys.argv[1])
