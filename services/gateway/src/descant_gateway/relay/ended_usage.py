"""What a request came to whose reply nobody read to its end: asked of the engine, which alone can know.

Its connection is closed first, so the engine ends the request and answers with what it generated until then.
"""

import asyncio
from http import HTTPStatus
from typing import Final
from uuid import UUID

import aiohttp
import msgspec

from descant_gateway.catalogue.snapshot import Backend
from descant_wire.load import USAGE_PATH, EndedUsage

ANSWER_TIMEOUT_S: Final = 2.0
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError)
NEVER_BEGUN: Final = EndedUsage(prompt_tokens=0, cached_tokens=0, completion_tokens=0)
_decoder = msgspec.json.Decoder(EndedUsage)


async def ask_ended_usage(session: aiohttp.ClientSession, backend: Backend, charge_id: UUID) -> EndedUsage | None:
    """None if the engine does not tell: then what came through has to do. NEVER_BEGUN if it knows no such charge."""
    headers = {} if backend.api_key is None else {"authorization": f"Bearer {backend.api_key}"}
    url = f"{backend.base_url}{USAGE_PATH}/{charge_id.hex}"
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            async with session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status == HTTPStatus.NOT_FOUND:
                    return NEVER_BEGUN
                if response.status != HTTPStatus.OK:
                    return None
                return _decoder.decode(await response.read())
    except _FAILURES:
        return None
