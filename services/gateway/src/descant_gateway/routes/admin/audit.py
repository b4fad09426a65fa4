"""/admin/v1/audit: every administrative change: who, what, before, after, from where."""

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.roles import Principal, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing, page_of
from descant_gateway.store import audit as store
from descant_gateway.store.audit import AuditEntry, AuditFilter
from descant_wire.errors import invalid_request


@get("/audit", opt=needs(Role.ADMIN))
async def show_audit(
    engine: NamedDependency[AsyncEngine],
    principal: NamedDependency[Principal],
    kind: FromQuery[str | None] = None,
    subject: FromQuery[str | None] = None,
    actor_id: FromQuery[str | None] = None,
    limit: FromQuery[int | None] = None,
    after: FromQuery[str | None] = None,
) -> Listing[AuditEntry]:
    """Newest first: of what the principal administers. `kind` is a table, `subject` the id or name of what changed."""
    size = page_of(limit, None).size
    wanted = AuditFilter(
        reach=principal.reach(Role.ADMIN), kind=kind, subject=subject, actor_id=actor_id, before_id=before_id(after)
    )
    async with engine.begin() as connection:
        entries = await store.find(connection, wanted, size)
    has_more = len(entries) > size
    return Listing(entries[:size], str(entries[size - 1].id) if has_more else None)


def before_id(after: str | None) -> int | None:
    """Where a listing by falling ids goes on."""
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise invalid_request("after: not the `next` of a listing.", param="after")
    return int(after)


ROUTES = (show_audit,)
