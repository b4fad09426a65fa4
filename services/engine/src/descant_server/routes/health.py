"""Probes, version, metrics: what a supervisor asks. No key needed, no request's content given."""

from importlib.metadata import version

from litestar import MediaType, Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from descant_server.auth import PUBLIC
from descant_server.errors import RETRY_RESTART_S
from descant_server.service import Service
from descant_wire.errors import service_unavailable


@get("/health", opt=PUBLIC, sync_to_thread=False, media_type=MediaType.TEXT)
def health(service: NamedDependency[Service]) -> str:
    """Live: restart the server if this is no 200. It is one while the model is being loaded."""
    if not service.is_alive:
        raise service_unavailable("The engine has died.", retry_after_s=RETRY_RESTART_S, code="engine_dead")
    return ""


@get("/ready", opt=PUBLIC, sync_to_thread=False, media_type=MediaType.TEXT)
def ready(service: NamedDependency[Service]) -> str:
    """Send requests here only if this is a 200: the model is loaded and the server is not about to end."""
    assert service.engine
    return ""


@get("/version", opt=PUBLIC, sync_to_thread=False)
def show_version() -> dict[str, str]:
    return {"version": version("descant-server")}


@get("/metrics", opt=PUBLIC, sync_to_thread=False)
def show_metrics(service: NamedDependency[Service]) -> Response[bytes]:
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
