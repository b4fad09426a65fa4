"""PostgreSQL and Valkey: are they there, are they fit, do their clocks agree with this one."""

import time
from collections.abc import AsyncIterator
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from descant_gateway.config import GatewayConfig
from descant_gateway.doctor.finding import Finding, good, problem, warning
from descant_gateway.limits.script_queue import connect
from descant_gateway.store.migrate import COMMAND, SchemaMismatch, check_schema
from descant_gateway.store.session import is_outage

MAX_SKEW_S: Final = 2.0
MIN_POSTGRES: Final = 150_000
"""15: unique constraints that take nulls for equal."""


async def examine_postgres(config: GatewayConfig, engine: AsyncEngine) -> AsyncIterator[Finding]:
    try:
        async with engine.connect() as connection:
            yield good("PostgreSQL answers")
            yield await _postgres_version(connection)
            yield await _postgres_clock(connection)
            yield await _postgres_connections(connection, config)
        yield await _schema(engine)
    except Exception as error:
        if not is_outage(error):
            raise
        yield problem(
            f"PostgreSQL can't be reached: {type(error).__name__}", "check DESCANT_DATABASE_URL and the server"
        )


async def _postgres_version(connection: AsyncConnection) -> Finding:
    version = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
    if version < MIN_POSTGRES:
        return problem(f"PostgreSQL is version {version // 10_000}", f"{MIN_POSTGRES // 10_000} or newer is needed")
    return good(f"PostgreSQL is version {version // 10_000}")


async def _postgres_clock(connection: AsyncConnection) -> Finding:
    before = time.time()
    theirs = float((await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())
    return clock_finding("PostgreSQL", theirs - (before + time.time()) / 2)


async def _postgres_connections(connection: AsyncConnection, config: GatewayConfig) -> Finding:
    most = int((await connection.execute(text("SHOW max_connections"))).scalar_one())
    processes = config.process.num_processes * config.process.workers
    needed = processes * config.database.max_connections
    if needed > most:
        return problem(
            f"{processes} gateway processes may open {needed} connections, PostgreSQL takes {most}",
            "lower DESCANT_DATABASE_POOL_SIZE, raise max_connections, or put PgBouncer between",
        )
    return good(f"PostgreSQL takes {most} connections, the gateways need at most {needed}")


async def _schema(engine: AsyncEngine) -> Finding:
    try:
        await check_schema(engine)
    except SchemaMismatch as error:
        return problem(str(error), f"run `{COMMAND}` of the newer release")
    return good("the database's schema fits this release")


async def examine_valkey(config: GatewayConfig) -> AsyncIterator[Finding]:
    valkey = connect(config.valkey.url.reveal())
    try:
        await valkey.ping()
        yield good("Valkey answers")
        yield await _valkey_clock(valkey)
        async for finding in _valkey_settings(valkey):
            yield finding
    except (RedisError, OSError) as error:
        yield problem(f"Valkey can't be reached: {type(error).__name__}", "check DESCANT_VALKEY_URL and the server")
    finally:
        await valkey.aclose()


async def _valkey_clock(valkey: "Redis") -> Finding:
    before = time.time()
    seconds, micros = await valkey.time()
    return clock_finding("Valkey", seconds + micros / 1e6 - (before + time.time()) / 2)


async def _valkey_settings(valkey: "Redis") -> AsyncIterator[Finding]:
    try:
        settings = await valkey.config_get("maxmemory-policy", "appendonly", "save")
    except RedisError:
        yield warning(
            "Valkey does not show its settings", "make sure of noeviction and appendonly in its configuration"
        )
        return
    policy, appends, saves = (settings.get(name, "") for name in ("maxmemory-policy", "appendonly", "save"))
    if policy == "noeviction":
        yield good("Valkey evicts nothing")
    else:
        yield problem(
            f"Valkey evicts keys when it is full (maxmemory-policy {policy}): limits would forget what was used",
            "set maxmemory-policy noeviction",
        )
    if appends == "yes":
        yield good("Valkey keeps what it counted over a restart")
    else:
        kept = "since its last snapshot " if saves else ""
        yield warning(
            f"Valkey has appendonly off: a restart forgets what the current periods had counted {kept}".rstrip(),
            "set appendonly yes, appendfsync everysec",
        )


def clock_finding(whose: str, skew_s: float) -> Finding:
    if abs(skew_s) > MAX_SKEW_S:
        return problem(
            f"{whose}'s clock differs from this one by {skew_s:+.1f} s: keys end and budgets begin at other times",
            "run NTP (chrony, systemd-timesyncd) on both",
        )
    return good(f"{whose}'s clock agrees with this one")
