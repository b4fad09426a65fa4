"""/v1/responses/{id}: responses that were stored. The pipeline makes them.

Reference: https://platform.openai.com/docs/api-reference/responses
"""

from typing import Final, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from msgspec import Raw, Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.background import body_now, cancelled
from descant_gateway.identity.authenticate import Caller
from descant_gateway.store import responses as store
from descant_gateway.store.vault import Vaults
from descant_wire.errors import invalid_request, unsupported_field
from descant_wire.responses import DeletedResponse, ItemList

AnyRequest = Request[object, object, State]


class _Named(Struct, frozen=True):
    id: str


@get("/v1/responses/{response_id:str}")
async def show_response(
    request: AnyRequest,
    response_id: FromPath[str],
    engine: NamedDependency[AsyncEngine],
    vaults: NamedDependency[Vaults],
    stream: FromQuery[bool] = False,
) -> Response[bytes]:
    if stream:
        raise unsupported_field("A stored response can't be streamed again.", param="stream")
    vault = await vaults.of(_team_id(request))
    async with engine.begin() as connection:
        found = await store.find(connection, vault, response_id)
    return Response(body_now(found), media_type="application/json")


@get("/v1/responses/{response_id:str}/input_items")
async def list_input_items(
    request: AnyRequest,
    response_id: FromPath[str],
    engine: NamedDependency[AsyncEngine],
    vaults: NamedDependency[Vaults],
    after: FromQuery[str | None] = None,
    limit: FromQuery[int] = 20,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
) -> ItemList:
    """Its own; those of the responses before it are theirs."""
    if not 1 <= limit <= 100:
        raise invalid_request("`limit` must be from 1 to 100.", param="limit")
    vault = await vaults.of(_team_id(request))
    async with engine.begin() as connection:
        found = await store.find(connection, vault, response_id)
    items = msgspec.json.decode(found.input, type=list[Raw])
    return _page(items if order == "asc" else items[::-1], after, limit)


@delete("/v1/responses/{response_id:str}", status_code=200)
async def delete_response(
    request: AnyRequest, response_id: FromPath[str], engine: NamedDependency[AsyncEngine]
) -> DeletedResponse:
    """Conversations can't go on from it any more, nor from those that follow it."""
    async with engine.begin() as connection:
        await store.remove(connection, _team_id(request), response_id)
    return DeletedResponse(id=response_id)


@post("/v1/responses/{response_id:str}/cancel", status_code=200)
async def cancel_response(
    request: AnyRequest,
    response_id: FromPath[str],
    engine: NamedDependency[AsyncEngine],
    vaults: NamedDependency[Vaults],
) -> Response[bytes]:
    """400 for one that was not begun in the background. One that is done stays as it is."""
    body = await cancelled(engine, await vaults.of(_team_id(request)), response_id)
    if body is None:
        raise unsupported_field(
            "Only responses that were begun with `background` can be cancelled.", param="background"
        )
    return Response(body, media_type="application/json")


def _page(items: list[Raw], after: str | None, limit: int) -> ItemList:
    ids = [msgspec.json.decode(item, type=_Named).id for item in items]
    if after is not None and after not in ids:
        raise invalid_request(f"There is no item {after!r}.", param="after")
    start = 0 if after is None else ids.index(after) + 1
    shown, shown_ids = items[start : start + limit], ids[start : start + limit]
    first, last = (shown_ids[0], shown_ids[-1]) if shown else (None, None)
    return ItemList(data=shown, first_id=first, last_id=last, has_more=start + limit < len(items))


def _team_id(request: AnyRequest) -> UUID:
    caller: Caller = request.state.caller
    return caller.team.id


ROUTES: Final = (show_response, list_input_items, delete_response, cancel_response)
