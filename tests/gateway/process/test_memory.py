"""No request leaves anything behind: the memory of a gateway's process while many pass through it."""

import asyncio
from pathlib import Path

import aiohttp
import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.gateway_process import create_world, environment, free_port, gateway_process, wait_until_ready
from tests.gateway.gateway_under_test import bearer
from tests.gateway.upstream import Upstream

CHAT = "/v1/chat/completions"
AT_ONCE, WARM_UP, NUM_REQUESTS = 32, 500, 800
PROMPT = "x" * 16_384
BYTES_A_REQUEST = 4096
"""Any one that stays takes more. Of one that does not, caches take some hundred bytes each until they are full."""


def memory_of(pid: int) -> int:
    """Resident bytes."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return 1024 * int(line.split()[1])


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> None:
    """Whole replies, streams, streams that are left, and refusals, each of another user's, a session of its own."""
    content, kind = f"{number} {PROMPT}", number % 4
    body = {"model": "none" if kind == 3 else "m", "messages": [{"role": "user", "content": content}]}
    headers = {"x-session-id": f"session-{number}", "x-request-id": f"request-{number}"}
    async with session.post(url + CHAT, json=body | {"stream": kind in (1, 2)}, headers=headers) as reply:
        assert reply.status == (404 if kind == 3 else 200)
        if kind == 2:
            await reply.content.readany()
        else:
            await reply.read()


async def ask_all(session: aiohttp.ClientSession, url: str, numbers: range) -> None:
    waiting = iter(numbers)

    async def one_after_the_other() -> None:
        for number in waiting:
            await ask(session, url, number)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


@pytest.mark.slow
async def test_memory_does_not_grow_with_requests(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(postgres_url, valkey_url, tmp_path) | {"DESCANT_LOG_LEVEL": "error"}
    with gateway_process(env, "--port", str(port)) as process:
        await wait_until_ready(url, process)
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            key = await create_world(client, upstream)
        await asyncio.sleep(1)
        async with aiohttp.ClientSession(headers=bearer(key)) as session:
            await ask_all(session, url, range(WARM_UP))
            before = memory_of(process.pid)
            await ask_all(session, url, range(WARM_UP, WARM_UP + NUM_REQUESTS))
            after = memory_of(process.pid)
        assert (after - before) / NUM_REQUESTS < BYTES_A_REQUEST
