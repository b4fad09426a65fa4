"""For those who watch the gateway: is it alive, can it take requests, what is it doing."""

from typing import Final

from litestar import Request, Response, get
from litestar.datastructures import State
from msgspec import Struct

from descant_gateway import metrics
from descant_gateway.access import LIMIT, OPT, Access, Rate
from descant_gateway.pipeline import Gateway

_PUBLIC: Final = {OPT: Access.PUBLIC, LIMIT: Rate(per_minute=6000)}
"""For each address, as many as a hundred replicas of a prober send."""
_STALE_S: Final = 10.0


class Readiness(Struct, frozen=True):
    ready: bool
    """False takes this gateway out of the load balancer. True once a catalogue was loaded."""
    catalogue_version: int
    valkey: bool
    """While away, keys with limits get 503 and keys without are served: so it does not make the gateway unready."""
    database: bool
    """While away, requests are served from the last catalogue and usage is spooled."""


@get("/health", opt=_PUBLIC, sync_to_thread=False)
def health() -> dict[str, str]:
    """The process is alive. Silent on what it depends on, so that a restart is never the answer to their outage."""
    return {"status": "ok"}


@get("/ready", opt=_PUBLIC)
async def ready(request: Request[object, object, State]) -> Response[Readiness]:
    gateway: Gateway = request.app.state.gateway
    version = gateway.feed.current.version
    readiness = Readiness(
        ready=version > 0,
        catalogue_version=version,
        valkey=await gateway.limiter.probe(),
        database=gateway.feed.age_s < _STALE_S,
    )
    return Response(readiness, status_code=200 if readiness.ready else 503)


@get("/metrics", opt=_PUBLIC, sync_to_thread=False)
def show_metrics(request: Request[object, object, State]) -> Response[bytes]:
    gateway: Gateway = request.app.state.gateway
    return Response(gateway.metrics.render(), media_type=metrics.CONTENT_TYPE)
