"""Clients of every class of request, on every gateway, and what each of them saw when."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout, TCPConnector
from tests.system.faults.plant import ADMIN_KEY, MODEL, PATIENCE_S, Json, Plant

CHAT = "/v1/chat/completions"
PAUSE_S = (0.02, 0.2)
CLIENT_TIMEOUT_S = 15.0
OK = "200"
LOST = "connection lost"
REFUSED = "connection refused"
BROKEN = "200, then an error event"
CUT = "200, then cut"
TIMED_OUT = "no answer"

KINDS = {
    "no limits": "a key that no limit lies on",
    "rates": "a key with limits per minute and on requests at once",
    "budget": "a key with a budget of tokens and of money as well",
    "wrong key": "a well-formed key that nobody was given",
    "models": "GET /v1/models",
    "admin read": "GET /admin/v1/teams",
    "admin write": "POST /admin/v1/teams",
}
INFERENCE = ("no limits", "rates", "budget")
UNIT_RATES = {"requests_per_minute": 10**7, "tokens_per_minute": 10**10, "concurrent_requests": 10**4}
BUDGETS = {"tokens_per_day": 10**10, "money_per_month": 10**15}


@dataclass(frozen=True)
class Answer:
    kind: str
    request_id: str
    gateway: int
    started: float
    ended: float
    label: str
    stream: bool = False
    tokens: int | None = None
    """Of a complete reply's usage."""

    @property
    def is_right(self) -> bool:
        return self.label == ("401 invalid_api_key" if self.kind == "wrong key" else OK)


@dataclass
class Tenant:
    api_key: str
    key_id: UUID
    team_id: UUID


@dataclass
class Load:
    plant: Plant
    tenants: dict[str, Tenant]
    num_clients: int
    seed: int = 1
    answers: list[Answer] = field(default_factory=list)
    is_over: bool = False

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._count = 0
        self._name = uuid4().hex[:8]

    def between(self, start: float, end: float) -> list[Answer]:
        """Those that ended in this time."""
        return [answer for answer in self.answers if start <= answer.ended < end]

    async def client(self, session: ClientSession, kind: str) -> None:
        """One after the other until it is over."""
        while not self.is_over:
            self._count += 1
            answer = await self._ask(session, kind, f"{self._name}.{kind.replace(' ', '-')}.{self._count}")
            self.answers.append(answer)
            slowness = 3 if kind not in INFERENCE else 1
            await asyncio.sleep(self._chance.uniform(*PAUSE_S) * slowness)

    async def _ask(self, session: ClientSession, kind: str, request_id: str) -> Answer:
        gateway, stream = self._chance.randrange(len(self.plant.gateways)), self._chance.random() < 0.5
        started, tokens = time.monotonic(), None
        try:
            label, tokens = await self._exchange(session, kind, request_id, self.plant.gateways[gateway].url, stream)
        except ClientConnectorError:
            label = REFUSED
        except (ClientError, OSError) as error:
            label = TIMED_OUT if isinstance(error, TimeoutError) else LOST
        return Answer(kind, request_id, gateway, started, time.monotonic(), label, stream, tokens)

    async def _exchange(
        self, session: ClientSession, kind: str, request_id: str, url: str, stream: bool
    ) -> tuple[str, int | None]:
        method, path, key, body = self._request(kind, request_id, stream)
        headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
        async with session.request(method, url + path, json=body, headers=headers) as reply:
            if reply.content_type == "text/event-stream":
                return await _read_stream(reply.content)
            content = await reply.read()
        fields = json.loads(content)
        if reply.status >= 300:
            return f"{reply.status} {fields.get('code') or fields['error']['code']}", None
        usage = fields.get("usage") if isinstance(fields, dict) else None
        return OK, usage["completion_tokens"] if usage else None

    def _request(self, kind: str, request_id: str, stream: bool) -> tuple[str, str, str, Json | None]:
        if kind == "models":
            return "GET", "/v1/models", self.tenants["no limits"].api_key, None
        if kind == "admin read":
            return "GET", "/admin/v1/teams", ADMIN_KEY, None
        if kind == "admin write":
            return "POST", "/admin/v1/teams", ADMIN_KEY, {"name": f"made by {request_id}"}
        body: Json = {"model": MODEL, "messages": [], "max_tokens": self._chance.randint(1, 20), "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return "POST", CHAT, self.tenants[kind].api_key, body


async def _read_stream(content: Any) -> tuple[str, int | None]:
    tokens, is_done, is_broken = None, False, False
    try:
        async for line in content:
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                is_done = True
            elif data:
                fields = json.loads(data)
                is_broken = is_broken or "error" in fields
                tokens = fields["usage"]["completion_tokens"] if fields.get("usage") else tokens
    except (ClientError, OSError):
        return CUT, None
    if is_broken:
        return BROKEN, None
    return (OK, tokens) if is_done else (CUT, None)


@asynccontextmanager
async def running_load(plant: Plant, tenants: dict[str, Tenant], num_clients: int = 12) -> AsyncIterator[Load]:
    """`num_clients` for inference, a third of them of each class, and one for each other kind of request."""
    load = Load(plant, tenants, num_clients)
    timeout = ClientTimeout(total=CLIENT_TIMEOUT_S)
    async with ClientSession(connector=TCPConnector(limit=0), timeout=timeout, trust_env=False) as session:
        kinds = [INFERENCE[number % len(INFERENCE)] for number in range(num_clients)]
        kinds += [kind for kind in KINDS if kind not in INFERENCE]
        clients = [asyncio.create_task(load.client(session, kind)) for kind in kinds]
        try:
            yield load
            load.is_over = True
            await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def make_tenants(plant: Plant) -> dict[str, Tenant]:
    """One of each class that has a key; known to every gateway."""
    tenants = {kind: await _tenant(plant, kind) for kind in INFERENCE}
    for kind, limits in {"rates": UNIT_RATES, "budget": UNIT_RATES | BUDGETS}.items():
        for limit, capacity in limits.items():
            owner = {"level": "team", "owner_id": str(tenants[kind].team_id)}
            await plant.send("PUT", "/limits", {**owner, "kind": limit, "capacity": capacity})
    unknown = await _tenant(plant, "wrong key")
    await plant.send("POST", f"/keys/{unknown.key_id}/revoke", {})
    async with asyncio.timeout(PATIENCE_S), ClientSession(trust_env=False) as session:
        while not await _all_know(session, plant, tenants, unknown):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return tenants | {"wrong key": unknown}


async def _tenant(plant: Plant, name: str) -> Tenant:
    team = await plant.send("POST", "/teams", {"name": f"{name} {uuid4().hex}"})
    key = await plant.send("POST", "/keys", {"team_id": team["id"], "name": name})
    return Tenant(key["api_key"], UUID(key["id"]), UUID(team["id"]))


async def _all_know(session: ClientSession, plant: Plant, tenants: dict[str, Tenant], unknown: Tenant) -> bool:
    async def ask(url: str, tenant: Tenant) -> tuple[int, int]:
        headers = {"authorization": f"Bearer {tenant.api_key}"}
        async with session.get(f"{url}/v1/limits", headers=headers) as reply:
            return reply.status, len((await reply.json()).get("limits", []))

    expected = {"no limits": 0, "rates": len(UNIT_RATES), "budget": len(UNIT_RATES | BUDGETS)}
    for gateway in plant.gateways:
        found = {kind: await ask(gateway.url, tenants[kind]) for kind in expected}
        if found != {kind: (200, count) for kind, count in expected.items()}:
            return False
        if (await ask(gateway.url, unknown))[0] != 401:
            return False
        async with session.post(f"{gateway.url}{CHAT}", json=_HELLO, headers=_bearer(tenants)) as reply:
            if reply.status != 200:
                return False
    return True


_HELLO = {"model": MODEL, "messages": [], "max_tokens": 1}


def _bearer(tenants: dict[str, Tenant]) -> dict[str, str]:
    return {"authorization": f"Bearer {tenants['no limits'].api_key}"}


def labels(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """How many of each class saw what."""
    return {
        kind: dict(Counter(answer.label for answer in answers if answer.kind == kind).most_common()) for kind in KINDS
    }
