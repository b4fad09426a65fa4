"""The catalogue and its backends: do the stored keys open, does each backend answer and serve what is said of it."""

from collections.abc import AsyncIterator
from typing import Final

import httpx
import msgspec
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Backend, Catalogue, Protocol
from descant_gateway.config import GatewayConfig
from descant_gateway.doctor.finding import Finding, good, problem, warning
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.store import catalogue as store
from descant_wire.load import LOAD_PATH, LOAD_VERSION, EngineLoad

TIMEOUT_S: Final = 5.0


class _Card(Struct, frozen=True):
    id: str


class _ModelList(Struct, frozen=True):
    """What every OpenAI-compatible server says, whatever else it adds."""

    data: list[_Card]


async def examine_catalogue(config: GatewayConfig, engine: AsyncEngine) -> AsyncIterator[Finding]:
    try:
        catalogue = await store.load(engine, Sealer(config.identity.key_pepper))
    except UnsealError as error:
        yield problem(str(error), "give DESCANT_KEY_PEPPER its old value, or set the backend's key anew")
        return
    yield good("what the database holds sealed opens with DESCANT_KEY_PEPPER")
    if not catalogue.models:
        yield warning("the catalogue has no model", "add one: `descant admin`, or DESCANT_CATALOGUE_FILE")
    async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
        for backend in catalogue.backends.values():
            async for finding in _examine_backend(client, backend, catalogue, config):
                yield finding


async def _examine_backend(
    client: httpx.AsyncClient, backend: Backend, catalogue: Catalogue, config: GatewayConfig
) -> AsyncIterator[Finding]:
    if backend.protocol is not Protocol.OPENAI:
        yield good(f"backend {backend.name}: not looked at, it speaks {backend.protocol.value}")
        return
    if backend.is_external and backend.base_url.startswith("http://"):
        yield warning(f"backend {backend.name} is outside the house and has no TLS", "use https:// in its address")
    headers = {"authorization": f"Bearer {backend.api_key}"} if backend.api_key else {}
    try:
        reply = await client.get(f"{backend.base_url}/v1/models", headers=headers)
    except httpx.HTTPError as error:
        yield problem(
            f"backend {backend.name} can't be reached at {backend.base_url}: {type(error).__name__}",
            "start it, or correct its address",
        )
        return
    yield _models_finding(backend, catalogue, reply)
    if not backend.is_external:
        async for finding in _examine_engine(client, backend, headers, config):
            yield finding


def _models_finding(backend: Backend, catalogue: Catalogue, reply: httpx.Response) -> Finding:
    if reply.status_code in (401, 403):
        return problem(f"backend {backend.name} refuses its key", "set the backend's api_key to one that it takes")
    if reply.status_code != 200:
        return problem(f"backend {backend.name} answers {reply.status_code}", "look into its log; is its model loaded?")
    try:
        served = {card.id for card in msgspec.json.decode(reply.content, type=_ModelList).data}
    except msgspec.MsgspecError:
        return warning(f"backend {backend.name} lists its models in another form", "its models can't be compared")
    wanted = {model.upstream_name for model in catalogue.models.values() if backend.name in model.backends}
    missing = sorted(wanted - served)
    if missing:
        return problem(
            f"backend {backend.name} does not serve {', '.join(missing)}",
            f"correct upstream_name; it serves {', '.join(sorted(served)[:10])}",
        )
    return good(f"backend {backend.name} answers and serves its {len(wanted)} models")


async def _examine_engine(
    client: httpx.AsyncClient, backend: Backend, headers: dict[str, str], config: GatewayConfig
) -> AsyncIterator[Finding]:
    """Only of an engine of ours."""
    try:
        reply = await client.get(backend.base_url + LOAD_PATH, headers=headers)
        load = msgspec.json.decode(reply.content, type=EngineLoad) if reply.status_code == 200 else None
    except (httpx.HTTPError, msgspec.MsgspecError):
        load = None
    if load is None:
        return
    if load.version != LOAD_VERSION:
        yield warning(
            f"engine {backend.name} reports its load in version {load.version}, this gateway reads {LOAD_VERSION}",
            "run the same release on both",
        )
    if load.verifies_identity != (config.identity.internal_key is not None):
        lacking = "gateway" if load.verifies_identity else "engine"
        yield problem(
            f"engine {backend.name}: the {lacking} has no DESCANT_INTERNAL_KEY: teams share its prefix cache",
            f"give the {lacking} the same DESCANT_INTERNAL_KEY as the other",
        )
