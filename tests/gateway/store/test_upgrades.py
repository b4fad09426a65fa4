"""From every earlier revision, with what an installation had by then, to the newest: nothing is lost, all of it works.

`DATA` holds for each revision what became possible with it: whoever adds a migration says here what an installation
would have by then.
"""

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Collection
from datetime import date
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.catalogue.snapshot import Catalogue
from descant_gateway.config import Secret
from descant_gateway.identity import keys
from descant_gateway.identity.authenticate import authenticate
from descant_gateway.sealing import Sealer
from descant_gateway.store import batches, catalogue, files, ledger, migrate, responses
from descant_gateway.store.session import create_engine
from descant_gateway.store.team_keys import TeamKeys
from descant_gateway.store.vault import Vaults

PEPPER = Secret("p" * 32)
KEY = keys.generate()
SECRET_HMAC = keys.hmac_secret(PEPPER.reveal(), KEY.secret).hex()

CHARGE = """
    INSERT INTO usage_ledger (charge_id, day, created_at, organization_id, team_id, key_id, request_id, model, parent,
        backend, endpoint, stream, outcome, status, prompt_tokens, cached_tokens, completion_tokens, estimated, ttft_ms,
        duration_ms{columns})
    SELECT md5('charge {n} {about} ' || hour)::uuid, (at AT TIME ZONE 'UTC')::date, at,
        (SELECT id FROM organizations WHERE name = 'default'), md5('team {n}')::uuid, md5('key {n}')::uuid,
        'req-' || hour, 'tickets-{n}', 'base-{n}', 'engine-{n}', '/v1/chat/completions', hour % 2 = 0, 'completed', 200,
        100 + hour, 10, 20, false, 35, 400{values}
    FROM generate_series(0, 49) AS hour, LATERAL (SELECT '2026-10-30T12:30Z'::timestamptz + hour * interval '1 hour')
        AS moment(at)
"""


def charges(about: str, **columns: str) -> str:
    """Fifty, over three days and the end of a month."""
    text = CHARGE.replace("{about}", about).replace("{columns}", "".join(f", {name}" for name in columns))
    return text.replace("{values}", "".join(f", {value}" for value in columns.values()))


DATA: dict[str, list[str]] = {
    "0001": [
        """INSERT INTO teams (id, organization_id, name, requests_per_minute, tokens_per_minute, allowed_models)
           SELECT md5('team {n}')::uuid, id, 'payments {n}', 600, 90000, ARRAY['base-{n}', 'tickets-{n}']
           FROM organizations WHERE name = 'default'""",
        """INSERT INTO keys (id, public_id, team_id, name, ip_ranges, revoked_at)
           VALUES (md5('key {n}')::uuid, '{public_id}', md5('team {n}')::uuid, 'service {n}', '{{10.0.0.0/8}}', NULL),
                  (md5('old key {n}')::uuid, 'revoked{n}', md5('team {n}')::uuid, 'old {n}', '{{}}', now())""",
        """INSERT INTO key_secrets (key_id, secret_hmac, not_after)
           VALUES (md5('key {n}')::uuid, '\\x{secret}', NULL), (md5('key {n}')::uuid, '\\xabcd0{n}', now())""",
        """INSERT INTO backends (name, base_url, sealed_api_key)
           VALUES ('engine-{n}', 'http://engine-{n}:8000', '\\x{sealed}')""",
        """INSERT INTO models (name, upstream_name, parent, alias_of, max_output_tokens)
           VALUES ('base-{n}', 'org/base', NULL, NULL, 4096), ('tickets-{n}', 'tickets', 'base-{n}', NULL, 512),
                  ('gpt-{n}', NULL, NULL, 'base-{n}', NULL)""",
        "INSERT INTO model_backends (model, backend, position) VALUES ('base-{n}', 'engine-{n}', 0)",
        charges("at 0001"),
    ],
    "0002": [
        """INSERT INTO limits (level, owner_id, kind, model, capacity, is_shadow, warn_at)
           VALUES ('team', md5('team {n}')::uuid, 'tokens_per_day', NULL, 5000000, false, '{{50,90}}'),
                  ('key', md5('key {n}')::uuid, 'money_per_month', 'tickets-{n}', 9000000, true, '{{}}')""",
        "UPDATE teams SET priority = 3, weight = 7 WHERE id = md5('team {n}')::uuid",
        "UPDATE backends SET max_in_flight = 64 WHERE name = 'engine-{n}'",
        charges("at 0002", cost_microdollars="4200"),
    ],
    "0003": [
        """INSERT INTO projects (id, team_id, name, allowed_models)
           VALUES (md5('project {n}')::uuid, md5('team {n}')::uuid, 'refunds {n}', ARRAY['tickets-{n}'])""",
        """INSERT INTO people (id, email, name, password_hash)
           VALUES (md5('person {n}')::uuid, 'ada-{n}@example.com', 'Ada', '$argon2id$v=19$m=19456,t=2,p=1$c2$aG')""",
        """INSERT INTO memberships (person_id, organization_id, team_id, role)
           SELECT md5('person {n}')::uuid, id, md5('team {n}')::uuid, 'admin' FROM organizations
           WHERE name = 'default'""",
        """INSERT INTO sessions (person_id, token_hash, expires_at)
           VALUES (md5('person {n}')::uuid, decode(md5('session {n}'), 'hex'), now() + interval '1 hour')""",
        """INSERT INTO service_accounts (id, organization_id, team_id, name, role)
           SELECT md5('robot {n}')::uuid, id, md5('team {n}')::uuid, 'deploys {n}', 'member' FROM organizations
           WHERE name = 'default'""",
        """UPDATE keys SET project_id = md5('project {n}')::uuid, scopes = '{{chat,models}}', created_by = 'person:x'
           WHERE id = md5('key {n}')::uuid""",
    ],
    "0004": [
        "UPDATE teams SET allows_external = true WHERE id = md5('team {n}')::uuid",
        "UPDATE model_backends SET weight = 3 WHERE model = 'base-{n}'",
        """INSERT INTO backends (name, base_url, protocol, is_external, api_key_env)
           VALUES ('cloud-{n}', 'https://cloud.example.com', 'anthropic', true, 'CLOUD_KEY_{n}')""",
        charges("at 0004", cost_microdollars="4200", served_model="'base-{n}'"),
    ],
    "0005": [
        """INSERT INTO price_versions (model, valid_from, input, cached, output)
           VALUES ('gpt-{n}', '2026-10-01Z', 4, 1, 9), ('gpt-{n}', '2026-10-02Z', NULL, NULL, NULL)""",
        charges(
            "at 0005",
            project_id="md5('project {n}')::uuid",
            alias_of="'base-{n}'",
            price_version="(SELECT max(version) FROM price_versions WHERE model = 'gpt-{n}')",
            tags="""'{{"project": "apollo"}}'""",
        ),
        """INSERT INTO usage_hourly (hour, organization_id, team_id, key_id, model, outcome, tags, requests,
               estimated_requests, prompt_tokens, cached_tokens, completion_tokens, cost_microdollars)
           SELECT '2026-10-01T07:00Z', id, md5('team {n}')::uuid, md5('key {n}')::uuid, 'tickets-{n}', 'completed',
               '{{"project": "apollo"}}', 7, 0, 700, 70, 140, 4200 FROM organizations WHERE name = 'default'""",
        """INSERT INTO usage_unrolled (hour, writer) VALUES ('2026-10-30T12:00Z', md5('writer {n}')::uuid)""",
    ],
    "0006": [
        "UPDATE teams SET prompt_log_days = 30, response_cache_s = 60 WHERE id = md5('team {n}')::uuid",
        "INSERT INTO prompt_log_keys (team_id, sealed_key) VALUES (md5('team {n}')::uuid, '\\x{team_key}')",
        """INSERT INTO prompt_log (team_id, at, key_id, request_id, model, sealed_request)
           VALUES (md5('team {n}')::uuid, now(), md5('key {n}')::uuid, 'req-0', 'tickets-{n}', '\\x00')""",
    ],
    "0007": [
        """INSERT INTO responses (id, team_id, previous_id, input, body, expires_at)
           VALUES ('resp_{n}', md5('team {n}')::uuid, NULL, '[{{"id": "msg_{n}"}}]', '{{"output": [{{"id": "a"}}]}}',
               now() + interval '1 day')""",
        """INSERT INTO files (id, team_id, filename, purpose, num_bytes, expires_at)
           VALUES ('file-{n}', md5('team {n}')::uuid, 'in.jsonl', 'batch', 10, now() + interval '1 day')""",
        "INSERT INTO file_chunks (file_id, position, data) VALUES ('file-{n}', 0, 'hello'), ('file-{n}', 1, 'world')",
        """INSERT INTO batches (id, team_id, key_public_id, endpoint, input_file_id, status, completion_window, labels,
               num_lines, expires_at)
           VALUES ('batch_{n}', md5('team {n}')::uuid, '{public_id}', '/v1/chat/completions', 'file-{n}', 'in_progress',
               '24h', '{{"run": "nightly"}}', 2, now() + interval '1 day')""",
        """INSERT INTO batch_lines (batch_id, position, custom_id, body, free_at, result, is_failed)
           VALUES ('batch_{n}', 0, 'one', '{{"model": "tickets-{n}"}}', NULL, '{{"id": "batch_req_0"}}', false),
                  ('batch_{n}', 1, 'two', '{{"model": "tickets-{n}"}}', now(), NULL, NULL)""",
    ],
    "0009": [
        """UPDATE batch_lines SET input_tokens = 7, cached_tokens = 3, output_tokens = 5, reasoning_tokens = 2
           WHERE batch_id = 'batch_{n}' AND position = 0""",
    ],
    "0010": [
        """INSERT INTO responses (id, team_id, input, body, expires_at, lease_until)
           VALUES ('resp_begun_{n}', md5('team {n}')::uuid, '[]', '{{"status": "in_progress"}}',
               now() + interval '1 day', now() + interval '30 seconds')""",
    ],
}
NOTHING_NEW = {"0008": "a trigger for what old replicas write: prices_of_old_replicas_are_kept"}
ONCE = {
    "0002": [
        "INSERT INTO organizations (id, name) VALUES (md5('hooked')::uuid, 'hooked')",
        """INSERT INTO webhooks (organization_id, url, sealed_secret)
           VALUES (md5('hooked')::uuid, 'https://hooks.example.com', '\\x{hook}')""",
    ]
}
"""What an installation has at this revision that a second set of rows can't have again."""
PRICE = "INSERT INTO {table} (model, input, cached, output) VALUES ('base-1', 3000000, 300000, 15000000)"
PRICES_WERE_IN = {"0002": "prices", "0003": "prices", "0004": "prices"}
"""Since 0005 they have versions, in a table of their own."""
Tables = dict[str, list[dict[str, Any]]]
BOOKKEEPING = {"alembic_version", "catalogue_version", "catalogue_changes", "audit_log"}


def revisions() -> list[str]:
    config = Config()
    config.set_main_option("script_location", str(migrate.scripts_folder()))
    return [each.revision for each in reversed(list(ScriptDirectory.from_config(config).walk_revisions()))]


async def upgrade_to(url: str, revision: str) -> None:
    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(migrate.scripts_folder()))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    engine = create_engine(Secret(url), pool_size=1)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


async def insert(url: str, statements: list[str], number: int, public_id: str, secret: str) -> None:
    connection = await asyncpg.connect(url)
    sealed = Sealer(PEPPER).seal("the backend's own key", name=f"engine-{number}").hex()
    hook = Sealer(PEPPER).seal("signs", name=f"webhook of {hashlib.md5(b'hooked').hexdigest()}").hex()
    team_id = UUID(hex=hashlib.md5(f"team {number}".encode()).hexdigest())
    team_key = Sealer(PEPPER).seal("7f" * 32, name=f"prompt log {team_id}").hex()
    values = {"n": str(number), "public_id": public_id, "secret": secret, "sealed": sealed, "hook": hook}
    values["team_key"] = team_key
    for statement in statements:
        text = statement.replace("{{", "\0").replace("}}", "\1")
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        await connection.execute(text.replace("\0", "{").replace("\1", "}"))
    await connection.close()


async def rows_of(url: str) -> Tables:
    """Every row of every table, as PostgreSQL shows it."""
    connection = await asyncpg.connect(url)
    tables = await connection.fetch(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    )
    found = {
        name: [msgspec.json.decode(row[0]) for row in await connection.fetch(f"SELECT to_jsonb(t) FROM {name} t")]
        for (name,) in tables
        if name not in BOOKKEEPING
    }
    await connection.close()
    return found


def lost(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no row has with the same values any more; new columns do not matter."""
    if not before:
        return []
    columns = before[0].keys()
    kept = {_encoded(row, columns) for row in after if columns <= row.keys()}
    return [row for row in before if _encoded(row, columns) not in kept]


def _encoded(row: dict[str, Any], columns: Collection[str]) -> bytes:
    return msgspec.json.encode([row[name] for name in columns])


def test_every_revision_says_what_an_installation_has_by_then() -> None:
    assert sorted([*DATA, *NOTHING_NEW]) == revisions()


@pytest.mark.parametrize("revision", revisions())
async def test_an_installation_of_any_revision_goes_on_with_all_it_had(empty_postgres_url: str, revision: str) -> None:
    url = empty_postgres_url
    before = await an_installation_of(url, revision)
    await migrate.upgrade_database(Secret(url))
    await has_all_of(url, before)
    await serves_what_it_served(url, revision)
    await old_replicas_go_on(url, revision)


async def test_two_replicas_may_upgrade_an_old_installation_at_once(empty_postgres_url: str) -> None:
    url = empty_postgres_url
    before = await an_installation_of(url, "0002")
    environment = {**os.environ, "DESCANT_DATABASE_URL": url}
    command = (sys.executable, "-m", "descant_gateway.store.migrate")
    started = [await asyncio.create_subprocess_exec(*command, env=environment) for _ in range(2)]
    async with asyncio.timeout(60):
        assert [await process.wait() for process in started] == [0, 0]
    await has_all_of(url, before)
    await serves_what_it_served(url, "0002")


async def an_installation_of(url: str, revision: str) -> Tables:
    await upgrade_to(url, revision)
    had = [text for each in DATA if each <= revision for text in DATA[each] + ONCE.get(each, [])]
    if revision >= "0002":
        had.append(PRICE.replace("{table}", PRICES_WERE_IN.get(revision, "price_versions")))
    await insert(url, had, 1, KEY.public_id, SECRET_HMAC)
    before = await rows_of(url)
    assert len(before["usage_ledger"]) >= 50
    return before


async def has_all_of(url: str, before: Tables) -> None:
    after = await rows_of(url)
    for table, rows in before.items():
        assert (len(after[table]), lost(rows, after[table])) == (len(rows), []), table


async def serves_what_it_served(url: str, revision: str) -> None:
    engine = create_engine(Secret(url))
    await migrate.check_schema(engine)
    current = await catalogue.load(engine, Sealer(PEPPER))
    caller = authenticate(f"Bearer {KEY.text}".encode(), "10.1.2.3", current, PEPPER.reveal())
    assert (caller.team.name, caller.team.limits.requests_per_minute) == ("payments 1", 600)
    assert current.models["tickets-1"].parent == "base-1"
    assert current.models["base-1"].backends == ("engine-1",)
    assert current.backends["engine-1"].api_key == "the backend's own key"
    if revision >= "0002":
        assert current.price_of(current.models["tickets-1"], time.time()).output == 15_000_000
        assert {rule.kind for rule in current.limits[caller.team.id]} >= {"tokens_per_day"}
        assert (caller.team.priority, caller.team.weight) == (3, 7)
        assert [webhook.secret for webhook in current.webhooks.values()] == ["signs"]
    if revision >= "0006":
        assert (caller.team.prompt_log_days, caller.team.response_cache_s) == (30, 60)
    if revision >= "0007":
        await what_was_left_is_there(engine, caller.team.id, has_batch_usage=revision >= "0009")
    await usage_goes_on(engine, url)
    await engine.dispose()


async def what_was_left_is_there(engine: AsyncEngine, team_id: UUID, *, has_batch_usage: bool) -> None:
    """Files, conversations and batches of a team, from before they were sealed."""
    vault = await Vaults(TeamKeys(engine, Sealer(PEPPER)), seals=True).of(team_id)
    async with engine.connect() as connection:
        file = await files.find(connection, team_id, "file-1")
        assert b"".join([piece async for piece in files.read(connection, vault, file.id)]) == b"helloworld"
        [turn] = await responses.conversation(connection, vault, "resp_1")
        assert turn.body == b'{"output": [{"id": "a"}]}'
        batch = await batches.find(connection, team_id, "batch_1")
    assert (batch.status, batch.num_lines, batch.num_completed) == ("in_progress", 2, 1)
    assert (batch.input_tokens, batch.reasoning_tokens) == ((7, 2) if has_batch_usage else (0, 0))


async def usage_goes_on(engine: AsyncEngine, url: str) -> None:
    """Days that the default partition holds get their own, and the sums stay what they were."""
    connection = await asyncpg.connect(url)
    counted = "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM usage_ledger"
    before = await connection.fetchrow(counted)
    async with engine.begin() as session:
        await ledger.ensure_partitions(session, date(2026, 10, 30), days=3)
    assert await connection.fetchrow(counted) == before
    assert await connection.fetchval("SELECT count(*) FROM usage_ledger_default") == 0
    await connection.close()


async def old_replicas_go_on(url: str, revision: str) -> None:
    """While a new release is rolled out, replicas of the old one write to the new schema as they always did."""
    other = keys.generate()
    hmac = keys.hmac_secret(PEPPER.reveal(), other.secret).hex()
    statements = [text for each in DATA if each <= revision for text in DATA[each]]
    await insert(url, statements, 2, other.public_id, hmac)
    current = await loaded(url)
    assert authenticate(f"Bearer {other.text}".encode(), "10.1.2.3", current, PEPPER.reveal()).team.name == "payments 2"
    if revision in PRICES_WERE_IN:
        await prices_of_old_replicas_are_kept(url)


async def prices_of_old_replicas_are_kept(url: str) -> None:
    """What they write to the table that the price list was in becomes a version, and a withdrawal one too."""
    connection = await asyncpg.connect(url)
    await connection.execute("INSERT INTO prices (model, input, cached, output) VALUES ('base-2', 3, 2, 7)")
    assert price_of(await loaded(url), "base-2") == 7
    await connection.execute("UPDATE prices SET output = 8 WHERE model = 'base-2'")
    assert price_of(await loaded(url), "base-2") == 8
    await connection.execute("DELETE FROM prices WHERE model = 'base-2'")
    assert price_of(await loaded(url), "base-2") == 0
    assert await connection.fetchval("SELECT count(*) FROM price_versions WHERE model = 'base-2'") == 3
    await connection.close()


def price_of(current: Catalogue, model: str) -> int:
    return current.price_of(current.models[model], time.time()).output


async def loaded(url: str) -> Catalogue:
    engine = create_engine(Secret(url), pool_size=1)
    try:
        return await catalogue.load(engine, Sealer(PEPPER))
    finally:
        await engine.dispose()
