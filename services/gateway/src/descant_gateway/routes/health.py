"""For those who watch the gateway: is it alive, can it take requests, what is it doing."""

from typing import Final

from litestar import Request, Response, get
from litestar.datastructures import State
from msgspec import Struct

from descant_gateway.pipeline import Gateway
from descant_gateway.process import metrics
from descant_gateway.process.drain import Drain
from descant_gateway.process.worker_metrics import MetricsPage
from descant_gateway.routes.access import LIMIT, OPT, Access, Rate

_PUBLIC: Final = {OPT: Access.PUBLIC, LIMIT: Rate(per_minute=6000)}
"""For each address, as many as a hundred replicas of a prober send."""
_STALE_S: Final = 10.0


class Readiness(Struct, frozen=True):
    ready: bool
    """False takes this gateway out of the load balancer: before a catalogue was loaded, and while it drains."""
    reasons: list[str]
    """Why not; or, of a gateway that is ready, what it has to do without."""
    catalogue_version: int
    valkey: bool
    """While away, keys with limits get 503 and keys without are served: so it does not make the gateway unready."""
    database: bool
    """Was the catalogue read from it lately? While not, requests are served from the last one; usage is spooled."""


@get("/health", opt=_PUBLIC, sync_to_thread=False)
def health() -> dict[str, str]:
    """The process is alive. Silent on what it depends on, so that a restart is never the answer to their outage."""
    return {"status": "ok"}


@get("/ready", opt=_PUBLIC)
async def ready(request: Request[object, object, State]) -> Response[Readiness]:
    gateway: Gateway = request.app.state.gateway
    drain: Drain = request.app.state.drain
    version = gateway.feed.current.version
    valkey, database = await gateway.limiter.probe(), gateway.feed.age_s < _STALE_S
    refusals = _refusals(version, drain)
    readiness = Readiness(
        ready=not refusals,
        reasons=refusals or _lacks(gateway, valkey=valkey, database=database),
        catalogue_version=version,
        valkey=valkey,
        database=database,
    )
    return Response(readiness, status_code=200 if readiness.ready else 503)


def _refusals(catalogue_version: int, drain: Drain) -> list[str]:
    reasons = []
    if drain.is_draining:
        reasons.append("draining: this process is about to end")
    if catalogue_version <= 0:
        reasons.append("no catalogue was loaded yet")
    return reasons


def _lacks(gateway: Gateway, *, valkey: bool, database: bool) -> list[str]:
    """None of it makes the gateway unready: it is the same for every replica, and answered request by request."""
    lacks = []
    if not valkey:
        lacks.append("Valkey is away: keys with limits get 503")
    if not database:
        why = "PostgreSQL is away, or holds a row that can't be read: the log says which"
        lacks.append(f"the catalogue was not refreshed for {gateway.feed.age_s:.0f} s: {why}")
    unwell = sorted(name for name, state in gateway.backends.states.items() if not state.is_healthy)
    if unwell:
        lacks.append(f"{len(unwell)} of {len(gateway.backends.states)} backends are not healthy")
    return lacks


@get("/metrics", opt=_PUBLIC)
async def show_metrics(request: Request[object, object, State]) -> Response[bytes]:
    """Of all workers, whichever answers."""
    page: MetricsPage = request.app.state.metrics_page
    return Response(await page.render(), media_type=metrics.CONTENT_TYPE)
