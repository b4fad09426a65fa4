"""Which backends may serve a request, best first: a pure function of the catalogue and of the backends' states."""

from collections.abc import Mapping

from msgspec import Struct

from descant_gateway.catalogue import Backend, Catalogue, ModelRoute
from descant_wire.errors import service_unavailable


class BackendState(Struct):
    """What this gateway knows of one backend. `backends.Backends` writes it, `route` reads it."""

    is_healthy: bool = True
    """Until a probe or a request says otherwise."""
    num_in_flight: int = 0
    """Requests of this gateway process that the backend is answering."""
    num_sent: int = 0


_UNKNOWN = BackendState()


def route(model: ModelRoute, catalogue: Catalogue, states: Mapping[str, BackendState]) -> list[Backend]:
    """The model's healthy backends, least busy first; among equals the one that was sent the least. 503 if none is."""
    serving = [catalogue.backends[name] for name in model.backends if name in catalogue.backends]
    healthy = [backend for backend in serving if states.get(backend.name, _UNKNOWN).is_healthy]
    if not healthy:
        raise service_unavailable(
            f"No backend for the model {model.name!r} is healthy right now. Try again shortly.",
            retry_after_s=2,
            code="no_healthy_backend",
        )
    if len(healthy) > 1:
        healthy.sort(key=lambda backend: _business(states.get(backend.name, _UNKNOWN)))
    return healthy


def _business(state: BackendState) -> tuple[int, int]:
    return state.num_in_flight, state.num_sent
