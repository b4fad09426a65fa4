"""OpenAI's Responses API: said as chat completions, and stored here, so that a conversation can go on from one."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from typing import Protocol as Interface
from uuid import UUID

import msgspec
import structlog
from msgspec import Raw, Struct
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.dialects import Background
from descant_gateway.dialects.own_words import body_in_own_words
from descant_gateway.dialects.response_items import input_items, new_id
from descant_gateway.dialects.response_reply import ResponseReply
from descant_gateway.dialects.response_request import chat_request
from descant_gateway.endpoints import CHAT
from descant_gateway.identity.authenticate import Caller
from descant_gateway.storable import is_storable
from descant_gateway.store import responses as store
from descant_gateway.store.errors import NotFound
from descant_gateway.store.responses import StoredResponse
from descant_gateway.store.vault import Vaults
from descant_wire.decoding import decode_request
from descant_wire.errors import ApiError, invalid_request, service_unavailable, unsupported_field
from descant_wire.responses import CreateResponse

_AWAY = (SQLAlchemyError, OSError, TimeoutError)
_OWN_WORDS: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}
_log = structlog.get_logger("descant_gateway.responses")


class _Output(Struct, frozen=True):
    output: list[Raw] = []


class ResponsesDialect:
    """Stored responses are kept for `keep`."""

    def __init__(self, engine: AsyncEngine, vaults: Vaults, keep: timedelta) -> None:
        self._engine = engine
        self._vaults = vaults
        self._keep = keep
        self.background: Background | None = None
        """Set once, when there is a pipeline to run them through; None: there are none."""

    def authorization(self, headers: Mapping[bytes, bytes]) -> bytes | None:
        return headers.get(b"authorization")

    def reply_headers(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        return ()

    def error(self, status: int, body: bytes) -> bytes:
        return body

    async def translate(self, body: bytes, caller: Caller) -> "ResponseTranslation":
        request = decode_request(body, CreateResponse)
        items = input_items(request.input) if request.input else []
        before = await self._before(request.previous_response_id, caller.team.id)
        said = chat_request(request, before, items)
        made = MadeResponse(_begun(request), caller.team.id, items)
        shelf = None if request.store is False else self
        background = self._background_of(request) if request.background else None
        return ResponseTranslation(msgspec.json.encode(said), made, shelf, background)

    def _background_of(self, request: CreateResponse) -> Background:
        if request.store is False:
            raise invalid_request("`background` needs `store`: what is not stored can't be asked for.", param="store")
        if request.stream:
            raise unsupported_field(
                "`stream`: a response in the background is asked for, not streamed.", param="stream"
            )
        if self.background is None:
            raise unsupported_field("`background` is not supported here.", param="background")
        return self.background

    async def _before(self, previous_id: str | None, team_id: UUID) -> list[Raw]:
        """All items of the conversation up to that response. Instructions do not carry over."""
        if previous_id is None:
            return []
        if not is_storable(previous_id):
            raise _no_previous(f"There is no stored response {previous_id!r}.")
        try:
            vault = await self._vaults.of(team_id)
            async with self._engine.begin() as connection:
                turns = await store.conversation(connection, vault, previous_id)
        except NotFound as error:
            raise _no_previous(str(error)) from None
        except _AWAY as error:
            _log.warning("stored responses can't be read", error=repr(error))
            raise service_unavailable("Stored responses can't be read right now.", retry_after_s=2) from None
        items: list[Raw] = []
        for turn in turns:
            items += msgspec.json.decode(turn.input, type=list[Raw])
            items += msgspec.json.decode(turn.body, type=_Output).output
        return items

    async def keep(self, made: "MadeResponse", lease_s: float | None = None) -> bool:
        """False if the database is away: the response then says that it is not stored. `lease_s`: it is only begun."""
        now = datetime.now(UTC)
        response = made.response
        stored = StoredResponse(
            id=response["id"],
            team_id=made.team_id,
            previous_id=response["previous_response_id"],
            input=msgspec.json.encode(made.items),
            body=msgspec.json.encode(response),
            created_at=now,
            expires_at=now + self._keep,
            lease_until=None if lease_s is None else now + timedelta(seconds=lease_s),
        )
        try:
            vault = await self._vaults.of(made.team_id)
            async with self._engine.begin() as connection:
                await store.create(connection, vault, stored)
        except _AWAY as error:
            _log.warning("a response can't be stored", response_id=response["id"], error=repr(error))
            return False
        return True


class MadeResponse(Struct, frozen=True):
    """A response, as far as it is known, and the items that were its own input."""

    response: dict[str, Any]
    team_id: UUID
    items: list[Raw]


class Shelf(Interface):
    async def keep(self, made: MadeResponse) -> bool:
        """False if it can't be kept."""


class ResponseTranslation:
    """Whoever hears the end of a response can go on from it: it is stored before its end is told."""

    endpoint = CHAT

    def __init__(
        self, body: bytes, made: MadeResponse, shelf: Shelf | None, background: Background | None = None
    ) -> None:
        self.body = body
        self.made = made
        self.background = background
        self._reply = ResponseReply(made.response)
        self._shelf = shelf

    def refusal(self, body: bytes) -> bytes:
        return body_in_own_words(body, _OWN_WORDS)

    async def whole(self, body: bytes) -> bytes:
        return msgspec.json.encode(await self._kept(self._reply.whole(body)))

    async def events(self, chunk: bytes) -> bytes:
        return self._reply.feed(chunk)

    async def end(self) -> bytes:
        closing, response = self._reply.close()
        return closing + self._reply.ending(await self._kept(response))

    async def _kept(self, response: dict[str, Any]) -> dict[str, Any]:
        made = MadeResponse(response, self.made.team_id, self.made.items)
        if self._shelf is None or await self._shelf.keep(made):
            return response
        return response | {"store": False}


def _begun(request: CreateResponse) -> dict[str, Any]:
    """The response as it is known before anything was generated: what was asked for, said back."""
    text, reasoning = request.text, request.reasoning
    form = {"type": "text"} if text is None or text.format is None else text.format
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "access_programs": None,
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {"format": form},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def _no_previous(message: str) -> ApiError:
    return invalid_request(message, param="previous_response_id", code="previous_response_not_found")
