"""How a batch begins: its file becomes lines, or faults that its client is told."""

from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.batches.input_file import InputFile
from descant_gateway.store import batch_endings, batch_work, files
from descant_gateway.store.batches import StoredBatch
from descant_gateway.store.errors import NotFound
from descant_gateway.store.vault import Vault
from descant_wire.batches import BatchFault

_NEVER_BEGUN: Final = BatchFault(
    code="server_error",
    message="The gateway failed to begin this batch, several times. None of its requests was run: send it again.",
)


async def begin(connection: AsyncConnection, vault: Vault, batch: StoredBatch) -> None:
    """Its file is read, and becomes lines, or the faults that the client is told."""
    file = InputFile(batch.endpoint)
    try:
        found = await files.find(connection, batch.team_id, batch.input_file_id)
    except NotFound as error:
        file.faults.append(BatchFault(code="file_not_found", message=str(error)))
    else:
        await file.read(files.read(connection, vault, found.id))
    if file.faults:
        await _fail(connection, batch, file.faults)
    else:
        await batch_work.begin(connection, vault, batch.id, file.lines)


async def give_up(connection: AsyncConnection, batch: StoredBatch) -> None:
    """Fails one that could not be begun, however often it was tried."""
    await _fail(connection, batch, [_NEVER_BEGUN])


async def _fail(connection: AsyncConnection, batch: StoredBatch, faults: list[BatchFault]) -> None:
    await batch_endings.fail(connection, batch.id, [msgspec.to_builtins(fault) for fault in faults])
