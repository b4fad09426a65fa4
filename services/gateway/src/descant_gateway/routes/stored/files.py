"""/v1/files: what batches read and write. Reference: https://platform.openai.com/docs/api-reference/files"""

import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import quote

from litestar import Request, delete, get, post
from litestar.datastructures import FormMultiDict, State, UploadFile
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.identity.authenticate import Caller
from descant_gateway.routes.access import LIMIT, Rate
from descant_gateway.routes.stored.bounds import StoreBounds
from descant_gateway.storable import require_storable
from descant_gateway.store import files as store
from descant_gateway.store.files import FilePage, StoredFile
from descant_gateway.store.vault import Vault, Vaults
from descant_wire.batches import DeletedFile, FileList, FileObject
from descant_wire.errors import invalid_request, payload_too_large, permission_denied, unsupported_field

MIN_KEPT_S: Final = 3600
MAX_KEPT_S: Final = 30 * 86_400
_PIECE: Final = 1 << 20
_UPLOADS: Final = {LIMIT: Rate(per_minute=60)}
_MAX_DIGITS: Final = 9
_ODD: Final = re.compile(r"[^\w.\- ]", re.ASCII)

AnyRequest = Request[object, object, State]


@post("/v1/files", opt=_UPLOADS, status_code=200)
async def upload_file(
    request: AnyRequest,
    engine: NamedDependency[AsyncEngine],
    vaults: NamedDependency[Vaults],
    bounds: NamedDependency[StoreBounds],
) -> FileObject:
    """multipart/form-data with `file` and `purpose`, which is batch."""
    caller: Caller = request.state.caller
    form = await _form(request)
    upload = _upload(form)
    file = StoredFile(
        id=f"file-{uuid.uuid4().hex}",
        team_id=caller.team.id,
        filename=upload.filename,
        purpose="batch",
        created_at=(now := datetime.now(UTC)),
        expires_at=now + _kept(form, bounds.keep),
    )
    vault = await vaults.of(caller.team.id)
    async with engine.begin() as connection:
        stored = await store.stored_bytes(connection, caller.team.id)
        writer = await store.create(connection, vault, file)
        while piece := await upload.read(_PIECE):
            await writer.write(piece)
            _require_room(writer.num_bytes, stored, bounds)
        await writer.close()
        return shown(await store.find(connection, caller.team.id, file.id))


@get("/v1/files")
async def list_files(
    request: AnyRequest,
    engine: NamedDependency[AsyncEngine],
    purpose: FromQuery[str | None] = None,
    after: FromQuery[str | None] = None,
    limit: FromQuery[int] = 10_000,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
) -> FileList:
    if not 1 <= limit <= 10_000:
        raise invalid_request("`limit` must be from 1 to 10000.", param="limit")
    page = FilePage(purpose=purpose, after=after, size=limit, is_descending=order == "desc")
    async with engine.begin() as connection:
        found = await store.page_of(connection, _team_id(request), page)
    data = [shown(file) for file in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, has_more=len(found) > limit, first_id=first, last_id=last)


@get("/v1/files/{file_id:str}")
async def show_file(request: AnyRequest, file_id: FromPath[str], engine: NamedDependency[AsyncEngine]) -> FileObject:
    async with engine.begin() as connection:
        return shown(await store.find(connection, _team_id(request), file_id))


@get("/v1/files/{file_id:str}/content")
async def file_content(
    request: AnyRequest,
    file_id: FromPath[str],
    engine: NamedDependency[AsyncEngine],
    vaults: NamedDependency[Vaults],
) -> Stream:
    vault = await vaults.of(_team_id(request))
    async with engine.begin() as connection:
        found = await store.find(connection, _team_id(request), file_id)
    headers = {
        "content-length": str(found.num_bytes),
        "content-disposition": _disposition(found.filename),
    }
    return Stream(_content(engine, vault, found.id), headers=headers, media_type="application/octet-stream")


@delete("/v1/files/{file_id:str}", status_code=200)
async def delete_file(request: AnyRequest, file_id: FromPath[str], engine: NamedDependency[AsyncEngine]) -> DeletedFile:
    """A batch that was begun has read its file."""
    async with engine.begin() as connection:
        await store.remove(connection, _team_id(request), file_id)
    return DeletedFile(id=file_id)


def shown(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created_at.timestamp()),
        expires_at=int(file.expires_at.timestamp()),
        filename=file.filename,
        purpose=file.purpose,
    )


async def _content(engine: AsyncEngine, vault: Vault, file_id: str) -> AsyncIterator[bytes]:
    async with engine.begin() as connection:
        async for piece in store.read(connection, vault, file_id):
            yield piece


def _team_id(request: AnyRequest) -> uuid.UUID:
    caller: Caller = request.state.caller
    return caller.team.id


def _disposition(filename: str) -> str:
    """With the whole name besides, for those that a header can't hold as they are (RFC 6266)."""
    plain = _ODD.sub("_", filename)
    whole = "" if plain == filename else f"; filename*=UTF-8''{quote(filename, safe='')}"
    return f'attachment; filename="{plain}"{whole}'


async def _form(request: AnyRequest) -> FormMultiDict:
    try:
        return await request.form()
    except (UnicodeDecodeError, LookupError) as error:  # a field that is not UTF-8, or of a charset that is none
        raise invalid_request(f"A field of the form is no text: {error}.", code="invalid_value") from None


def _upload(form: FormMultiDict) -> UploadFile:
    upload: Any = form.get("file")
    if not isinstance(upload, UploadFile):
        raise invalid_request("An upload is multipart/form-data with the file in the field 'file'.", param="file")
    purpose = form.get("purpose")
    if purpose != "batch":
        message = f"The purpose is {purpose!r}; files are kept for 'batch' only."
        raise unsupported_field(message, param="purpose")
    require_storable(upload.filename, "file")
    return upload


def _kept(form: FormMultiDict, longest: timedelta) -> timedelta:
    """`expires_after` may shorten what the gateway keeps files for."""
    given: Any = form.get("expires_after[seconds]")
    if given is None:
        return longest
    text = str(given)
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else 0
    if not MIN_KEPT_S <= seconds <= MAX_KEPT_S:
        message = f"expires_after.seconds must be from {MIN_KEPT_S} to {MAX_KEPT_S}."
        raise invalid_request(message, param="expires_after")
    return min(longest, timedelta(seconds=seconds))


def _require_room(num_bytes: int, stored: int, bounds: StoreBounds) -> None:
    if num_bytes > bounds.max_file_bytes:
        raise payload_too_large(f"The file is larger than {bounds.max_file_bytes} bytes.")
    if stored + num_bytes > bounds.max_team_bytes:
        message = f"Your team's files would be more than {bounds.max_team_bytes} bytes. Delete some first."
        raise permission_denied(message, code="storage_full")


ROUTES: Final = (upload_file, list_files, show_file, file_content, delete_file)
