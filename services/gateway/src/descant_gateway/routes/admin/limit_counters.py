"""/admin/v1/limits/rebuild: the counters of budgets made what the ledger says."""

from uuid import UUID

import structlog
from litestar import post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Struct
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import Secret
from descant_gateway.identity.roles import Level, Role
from descant_gateway.ledger.reconcile import Drift, in_turn, rebuild, sure_drifts
from descant_gateway.limits.script_queue import connect
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing
from descant_gateway.sealing import Sealer
from descant_gateway.store import catalogue as stored
from descant_wire.errors import service_unavailable

_log = structlog.get_logger(__name__)


class DriftRow(Struct, frozen=True, kw_only=True):
    """A counter that was not what the ledger says."""

    level: str
    owner_id: UUID
    kind: str
    model: str | None
    difference: int
    """The ledger less the counter: tokens or micro-dollars."""


@post("/limits/rebuild", opt=needs(Role.ADMIN, Level.INSTALLATION), status_code=200)
async def rebuild_counters(
    engine: NamedDependency[AsyncEngine],
    sealer: NamedDependency[Sealer],
    valkey_url: NamedDependency[Secret],
    dry_run: FromQuery[bool] = False,
) -> Listing[DriftRow]:
    """Tells which counters differed; with `dry_run` it changes none. 503 while a gateway compares them by itself."""
    catalogue = await stored.load(engine, sealer)
    valkey, drifts = connect(valkey_url.reveal()), list[Drift]()

    async def work() -> None:
        drifts.extend(await (sure_drifts if dry_run else rebuild)(catalogue, engine, valkey))

    try:
        if not await in_turn(valkey, work):
            message = "A gateway is comparing counters and ledger right now."
            raise service_unavailable(message, retry_after_s=5, code="busy")
    except RedisError as error:
        message = "Valkey can't be reached, so its counters can't be rebuilt."
        raise service_unavailable(message, retry_after_s=5, code="limits_unavailable") from error
    finally:
        await valkey.aclose()
    if drifts and not dry_run:
        _log.warning("counters were rebuilt from the ledger by an administrator", num_counters=len(drifts))
    return Listing([_row(drift) for drift in drifts])


def _row(drift: Drift) -> DriftRow:
    limit = drift.limit
    return DriftRow(
        level=limit.level,
        owner_id=UUID(limit.owner),
        kind=limit.kind,
        model=limit.model,
        difference=drift.difference,
    )


ROUTES = (rebuild_counters,)
