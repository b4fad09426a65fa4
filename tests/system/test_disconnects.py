"""200 clients that leave gateway and engine at random moments, streaming and not: nothing may be left of them."""

import asyncio
import random
from collections import Counter

import aiohttp
import pytest
from tests.gateway.gateway_under_test import bearer

from .conftest import MODELS, PATIENCE_S, Stack, eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

NUM_CLIENTS = 200
ARRIVALS_S = 8.0
MAX_STAY_S = 3.0


async def leave_early(stack: Stack, session: aiohttp.ClientSession, number: int, stay_s: float) -> bool:
    """Asks for far more than fits into its stay, which for one in six begins with the reply, however busy the machine.
    True if the reply had begun, so that the request was admitted."""
    body = {
        "model": MODELS[number % len(MODELS)],
        "messages": [{"role": "user", "content": f"Tell me story number {number}."}],
        "max_tokens": 600,
        "ignore_eos": True,
        "stream": number % 2 == 0,
    }
    headers = bearer(stack.key) | {"x-request-id": f"leaver-{number}"}
    has_begun = False
    try:
        async with asyncio.timeout(PATIENCE_S if number % 6 == 0 else stay_s) as stay:
            async with session.post(f"{stack.url}/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                has_begun = True
                if number % 6 == 0:
                    stay.reschedule(asyncio.get_running_loop().time() + stay_s)
                await response.read()
    except TimeoutError:
        return has_begun
    raise AssertionError("the answer ended before its client left")


async def eventually_only(tasks_before: set[asyncio.Task[object]]) -> None:
    """Until no task is left that was not there before; the health probes' come and go."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while left := asyncio.all_tasks() - tasks_before - {asyncio.current_task()}:
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.02)


async def test_200_clients_that_leave_are_booked_once_and_forgotten(stack: Stack) -> None:
    dice = random.Random(7)
    await eventually(lambda: stack.engine.num_requests == 0, "an idle engine")
    held_before, admitted_before, tasks_before = stack.engine.held_blocks, stack.num_admitted(), asyncio.all_tasks()

    async def come_and_go(number: int) -> bool:
        await asyncio.sleep(dice.random() * ARRIVALS_S)
        return await leave_early(stack, session, number, dice.random() ** 2 * MAX_STAY_S)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        had_begun = await asyncio.gather(*(come_and_go(number) for number in range(NUM_CLIENTS)))
    assert sum(had_begun) > NUM_CLIENTS / 10, "the stays are too short to show anything"

    await eventually(lambda: stack.engine.num_requests == 0, "no request in the engine")
    await eventually(lambda: stack.engine.held_blocks == held_before, "no block held")
    await eventually(lambda: stack.gateway.limiter.num_unsettled == 0, "no ticket open")
    await eventually(lambda: stack.reservations() == [], "no reservation in Valkey")
    await eventually_only(tasks_before)

    num_admitted = round(stack.num_admitted() - admitted_before)
    rows = await stack.rows_of("leaver-", num_admitted)
    per_request = Counter(row["request_id"] for row in rows)
    assert set(per_request.values()) == {1}
    assert len(rows) == num_admitted
    assert per_request.keys() >= {f"leaver-{number}" for number, begun in enumerate(had_begun) if begun}
    assert {row["outcome"] for row in rows} == {"client_left"}
    assert all(0 <= row["completion_tokens"] < 600 for row in rows)
    assert stack.errors == []
    assert stack.engine.errors == []

    async with stack.client() as client:
        answer = await client.completions.create(model=MODELS[0], prompt="Hello", max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
