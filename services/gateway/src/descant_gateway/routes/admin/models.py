"""/admin/v1/models: base models, adapters and aliases that clients may name."""

from typing import Annotated

from litestar import delete, get, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.routing_policy import NO_POLICY, RoutingPolicy
from descant_gateway.identity.roles import Level, Role
from descant_gateway.routes.access import needs
from descant_gateway.routes.admin.fields import Listing, Name, Names
from descant_gateway.store import models as store
from descant_gateway.store.models import DEFAULT_MAX_OUTPUT_TOKENS, ModelRow, NewModel
from descant_wire.errors import invalid_request

Weight = Annotated[int, Meta(ge=1, le=10_000)]


class ModelSetting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A base model; an adapter if `parent` is given; an alias if `alias_of` is given, which then stands alone."""

    name: Name
    upstream_name: Name | None = None
    """What the backends call it; null: the same name."""
    parent: Name | None = None
    alias_of: Name | None = None
    backends: Names | None = None
    """An adapter without any is served wherever its base model is."""
    weights: Annotated[list[Weight], Meta(max_length=10_000)] | None = None
    """Each backend's share; null: equal shares."""
    policy: RoutingPolicy | None = None
    """Fallbacks, canary, shadow and time limits; null: none."""
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Reserved against token limits when a request names no max_tokens; null: 4096."""


@put("/models", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def put_model(data: JSONBody[ModelSetting], engine: NamedDependency[AsyncEngine]) -> ModelRow:
    if data.alias_of is not None:
        _require_nothing_else(data)
        async with engine.begin() as connection:
            return await store.put_alias(connection, data.name, target=data.alias_of)
    model = NewModel(
        name=data.name,
        upstream_name=data.upstream_name or data.name,
        parent=data.parent,
        backends=data.backends or [],
        weights=data.weights or [],
        policy=data.policy or NO_POLICY,
        max_output_tokens=data.max_output_tokens or DEFAULT_MAX_OUTPUT_TOKENS,
    )
    async with engine.begin() as connection:
        return await store.put(connection, model)


@get("/models", opt=needs(Role.VIEWER))
async def list_models(engine: NamedDependency[AsyncEngine]) -> Listing[ModelRow]:
    async with engine.begin() as connection:
        return Listing(await store.list_all(connection))


@delete("/models/{name:path}", opt=needs(Role.ADMIN, Level.INSTALLATION))
async def delete_model(name: FromPath[str], engine: NamedDependency[AsyncEngine]) -> None:
    """A model's name may hold slashes."""
    async with engine.begin() as connection:
        await store.remove(connection, name.removeprefix("/"))


def _require_nothing_else(data: ModelSetting) -> None:
    for field in ("upstream_name", "parent", "backends", "weights", "policy", "max_output_tokens"):
        if getattr(data, field) is not None:
            raise invalid_request(f"An alias has its target's {field}; leave it out.", param=field)


ROUTES = (put_model, list_models, delete_model)
