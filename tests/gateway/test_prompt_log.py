"""Prompts of teams that want them logged: sealed in a real PostgreSQL, read by owners alone, gone in time."""

import asyncio
import json
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Key
from descant_gateway.config import Secret
from descant_gateway.identity.authenticate import Caller
from descant_gateway.prompt_log import PromptLog
from descant_gateway.request import read_request
from descant_gateway.sealing import Sealer, UnsealError
from descant_gateway.store import catalogue, prompts
from descant_gateway.store.team_keys import TeamKeys

from .admin_under_test import ADMIN_KEY, admin_app, client_of

SEALER = Sealer(Secret("p" * 32))
BODY = b'{"model":"m","messages":[{"role":"user","content":"CANARY-PROMPT"}]}'


async def caller_of(engine: AsyncEngine, team_id: str) -> Caller:
    snapshot = await catalogue.load(engine, Sealer(Secret("p" * 32)))
    team = snapshot.teams[UUID(team_id)]
    return Caller(Key(id=UUID(int=1), public_id="x", team_id=team.id, name="k", secret_hmacs=()), team)


async def test_prompts_are_sealed_read_by_owners_audited_and_dropped(engine: AsyncEngine) -> None:
    async with client_of(admin_app(engine), ADMIN_KEY) as client:
        team_id = (await client.post("/teams", json={"name": "t"})).json()["id"]
        other_id = (await client.post("/teams", json={"name": "u"})).json()["id"]
        assert (await caller_of(engine, team_id)).team.prompt_log_days is None
        for each in (team_id, other_id):
            reply = await client.patch(f"/teams/{each}", json={"prompt_log_days": 7})
            assert reply.json()["prompt_log_days"] == 7
        log = PromptLog(engine, TeamKeys(engine, SEALER))
        log.start()
        request = read_request("/v1/chat/completions", BODY)
        for each in (team_id, other_id):
            log.record(await caller_of(engine, each), request, f"req-{each}")
        await log.close()

        async with engine.connect() as connection:
            rows = (await connection.execute(text("SELECT * FROM prompt_log"))).all()
            assert len(rows) == 2
            assert "CANARY" not in str(rows)
            found = await prompts.find(connection, UUID(team_id), None, 10)
        reply = await client.get(f"/teams/{team_id}/prompts")
        (shown,) = reply.json()["data"]
        assert json.loads(shown["request"]) == json.loads(BODY)
        assert shown["request_id"] == f"req-{team_id}"
        audit = (await client.get("/audit", params={"kind": "prompt_log"})).json()["data"]
        assert [(each["action"], each["subject"], each["actor_kind"]) for each in audit] == [
            ("read", team_id, "admin_key")
        ]
        assert audit[0]["after"] == {"num_read": 1}

        own, other = [await TeamKeys(engine, SEALER).of(UUID(each)) for each in (team_id, other_id)]
        sealed = found[0].sealed_request
        assert json.loads(own.unseal(sealed, name=found[0].request_id)) == json.loads(BODY)
        for cipher, name in ((other, found[0].request_id), (own, "another request")):
            with pytest.raises(UnsealError):
                cipher.unseal(sealed, name=name)
        with pytest.raises(UnsealError):
            await TeamKeys(engine, Sealer(Secret("q" * 32))).of(UUID(team_id))

        await client.patch(f"/teams/{team_id}", json={"prompt_log_days": None})
        async with engine.begin() as connection:
            await connection.execute(
                text("UPDATE prompt_log SET at = now() - interval '8 days' WHERE team_id = :id"), {"id": UUID(other_id)}
            )
            async with engine.begin() as beside:
                assert await prompts.drop_old(beside) == 1
                assert await prompts.drop_old(connection) is None
        async with engine.begin() as connection:
            assert await prompts.drop_old(connection) == 1
            assert (await connection.execute(text("SELECT count(*) FROM prompt_log"))).scalar_one() == 0


async def test_a_database_that_is_away_costs_no_memory_beyond_the_bound(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("descant_gateway.prompt_log.MAX_WAITING_BYTES", 3 * len(BODY))
    async with client_of(admin_app(engine), ADMIN_KEY) as client:
        team_id = (await client.post("/teams", json={"name": "t"})).json()["id"]
    log = PromptLog(engine, TeamKeys(engine, SEALER))
    caller, request = await caller_of(engine, team_id), read_request("/v1/chat/completions", BODY)
    for _ in range(5):
        log.record(caller, request, "req")
    assert (len(log._waiting), log.num_dropped) == (3, 2)
    await asyncio.sleep(0)
