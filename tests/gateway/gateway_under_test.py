"""A gateway on a real socket for the tests of the data side: catalogue in memory, real Valkey, usage kept in a list."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from uuid import UUID, uuid4

import httpx
import uvicorn

from descant_gateway.app import build_app
from descant_gateway.catalogue.snapshot import (
    AllowList,
    Backend,
    Catalogue,
    Key,
    LimitRule,
    ModelRoute,
    Price,
    RateLimits,
    Team,
    Webhook,
)
from descant_gateway.config import (
    DatabaseConfig,
    GatewayConfig,
    IdentityConfig,
    LimitsConfig,
    ProcessConfig,
    Secret,
    UpstreamsConfig,
    ValkeyConfig,
)
from descant_gateway.data_side import open_data_side
from descant_gateway.identity import keys
from descant_gateway.pipeline import Gateway
from descant_gateway.process.client_protocol import ClientProtocol
from descant_gateway.usage.record import UsageRecord

PEPPER = "p" * 32
NO_LIMITS = RateLimits()
UNUSED_DATABASE = DatabaseConfig(url=Secret("postgresql://nobody@127.0.0.1:1/none"))
VALKEY_IS_AWAY = ValkeyConfig(url=Secret("redis://127.0.0.1:1/0"), timeout_s=0.2)
LOOPBACK = (ip_network("127.0.0.0/8"),)
IDENTITY = IdentityConfig(key_pepper=Secret(PEPPER), admin_key=Secret("a" * 32))


@dataclass
class World:
    """The catalogue that a gateway serves from, and the ledger it writes to; both in memory."""

    backends: list[Backend] = field(default_factory=list)
    models: list[ModelRoute] = field(default_factory=list)
    teams: dict[UUID, Team] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    records: list[UsageRecord] = field(default_factory=list)
    limits: dict[UUID, tuple[LimitRule, ...]] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    webhooks: dict[UUID, Webhook] = field(default_factory=dict)
    organization_id: UUID = field(default_factory=uuid4)
    age_s: float = 0.0

    @property
    def current(self) -> Catalogue:
        return Catalogue(
            version=1,
            teams=self.teams,
            keys=self.keys,
            models={model.name: model for model in self.models},
            backends={backend.name: backend for backend in self.backends},
            limits=self.limits,
            prices={name: (price,) for name, price in self.prices.items()},
            webhooks=self.webhooks,
        )

    def begin(self, record: UsageRecord) -> None:
        """These tests kill no gateway."""

    def append(self, record: UsageRecord) -> None:
        self.records.append(record)

    def add_team(self, limits: RateLimits = NO_LIMITS, allowed_models: frozenset[str] | None = None) -> Team:
        team = Team(
            id=uuid4(),
            organization_id=self.organization_id,
            name="team",
            limits=limits,
            allowed=AllowList(models=allowed_models),
        )
        self.teams[team.id] = team
        return team

    def add_key(self, team: Team | None = None, allowed_models: frozenset[str] | None = None, **fields: object) -> str:
        """The text that its holder sends."""
        team = team or self.add_team()
        parsed = keys.generate()
        self.keys[parsed.public_id] = Key(
            id=uuid4(),
            public_id=parsed.public_id,
            team_id=team.id,
            name="key",
            secret_hmacs=(keys.hmac_secret(PEPPER, parsed.secret),),
            **({"allowed": AllowList(models=allowed_models)} | fields),
        )
        return parsed.text

    def add_model(self, name: str, *backends: Backend, upstream_name: str | None = None, **fields: object) -> None:
        self.backends += [backend for backend in backends if backend not in self.backends]
        names = tuple(backend.name for backend in backends)
        self.models.append(ModelRoute(name=name, upstream_name=upstream_name or name, backends=names, **fields))


@dataclass
class Running:
    url: str
    gateway: Gateway
    client: httpx.AsyncClient


def config_for_tests(valkey_url: str, **parts: object) -> GatewayConfig:
    """Patient, on two busy cores. A part that is given takes the place of the one here."""
    defaults: dict = {
        "database": UNUSED_DATABASE,
        "valkey": ValkeyConfig(url=Secret(valkey_url), timeout_s=2.0),
        "identity": IDENTITY,
        "limits": LimitsConfig(webhook_networks=LOOPBACK),
        "upstreams": upstream_times(),
        "process": ProcessConfig(shutdown_grace_s=2.0),
    }
    return GatewayConfig(**(defaults | parts))


def upstream_times(*, health_interval_s: float = 0.1, **timeouts: float) -> UpstreamsConfig:
    return UpstreamsConfig(connect_timeout_s=20.0, health_interval_s=health_interval_s, **timeouts)


def database(url: str) -> DatabaseConfig:
    return DatabaseConfig(url=Secret(url))


@asynccontextmanager
async def running_gateway(world: World, valkey_url: str, **parts: object) -> AsyncIterator[Running]:
    config = config_for_tests(valkey_url, **parts)
    async with (
        open_data_side(config, world, world) as gateway,
        serving(build_app(gateway)) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield Running(url, gateway, client)


@asynccontextmanager
async def serving(app: object) -> AsyncIterator[str]:
    """The app on a free port, in this event loop."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http=ClientProtocol,
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=2,
        )
    )
    task = asyncio.create_task(server._serve())  # serve() would take the signal handlers
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the gateway did not start")
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        async with asyncio.timeout(10):
            await task


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def eventually(condition: object, timeout_s: float = 5.0) -> None:
    """Waits until condition() is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
