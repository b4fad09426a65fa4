"""What the doctor says of a deployment that is well, and of each thing that is not. Real PostgreSQL and Valkey."""

import json
import os
import subprocess
import sys
from pathlib import Path

import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from descant_gateway.config import Secret
from descant_gateway.doctor.command import examine
from descant_gateway.doctor.databases import clock_finding
from descant_gateway.doctor.finding import Finding, Verdict
from descant_gateway.sealing import Sealer

from .gateway_process import environment
from .upstream import Upstream, running


async def findings_of(env: dict[str, str]) -> list[Finding]:
    return [finding async for finding in examine(env)]


def of(findings: list[Finding], verdict: Verdict) -> str:
    assert all(finding.to_do for finding in findings if finding.verdict is not Verdict.GOOD)
    return "\n".join(finding.what for finding in findings if finding.verdict is verdict)


async def test_each_fault_is_named_with_what_to_do(
    engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    env = environment(postgres_url, valkey_url, tmp_path) | {"DESCANT_INTERNAL_KEY": "i" * 32}
    with redis.Redis.from_url(valkey_url) as valkey:
        before = valkey.config_get("maxmemory-policy", "appendonly")
        try:
            valkey.config_set("maxmemory-policy", "noeviction")
            well = await findings_of(env)
            assert of(well, Verdict.PROBLEM) == ""
            valkey.config_set("maxmemory-policy", "allkeys-lru")
            assert "Valkey evicts keys" in of(await findings_of(env), Verdict.PROBLEM)
        finally:
            valkey.config_set("maxmemory-policy", before["maxmemory-policy"])

    async with running(Upstream()) as upstream, engine.begin() as connection:
        add_backend = text("INSERT INTO backends (name, base_url, sealed_api_key) VALUES (:name, :url, :key)")
        sealed = Sealer(Secret("p" * 32)).seal("CANARY", name="gone")
        await connection.execute(add_backend, {"name": "here", "url": upstream.url, "key": None})
        await connection.execute(add_backend, {"name": "gone", "url": "http://127.0.0.1:1", "key": sealed})
        await connection.commit()
        problems = of(await findings_of(env), Verdict.PROBLEM)
        assert "backend gone can't be reached at http://127.0.0.1:1" in problems
        assert "backend here answers 404" in problems
        other_pepper = await findings_of(env | {"DESCANT_KEY_PEPPER": "q" * 32})
        assert "has DESCANT_KEY_PEPPER changed?" in of(other_pepper, Verdict.PROBLEM)
        assert "CANARY" not in str(other_pepper)

    without_key = {name: value for name, value in env.items() if name != "DESCANT_INTERNAL_KEY"}
    blocked = tmp_path / "file"
    blocked.write_text("")
    findings = await findings_of(without_key | {"DESCANT_LEDGER_SPOOL_DIR": str(blocked / "spool")})
    assert "DESCANT_INTERNAL_KEY is not set" in of(findings, Verdict.WARNING)
    assert "spool" in of(findings, Verdict.PROBLEM)

    many = await findings_of(env | {"DESCANT_NUM_PROCESSES": "500"})
    assert "gateway processes may open" in of(many, Verdict.PROBLEM)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    assert "schema revision 0001" in of(await findings_of(env), Verdict.PROBLEM)


def test_clocks_that_differ_are_a_problem() -> None:
    assert clock_finding("Valkey", 0.5).verdict is Verdict.GOOD
    assert clock_finding("Valkey", -9.0).verdict is Verdict.PROBLEM


def test_the_command_says_it_in_lines_or_json_and_by_its_status(tmp_path: Path) -> None:
    env = environment("postgresql://u:CANARY@127.0.0.1:1/x", "redis://127.0.0.1:1/0", tmp_path)
    env["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    command = [sys.executable, "-m", "descant_cli", "doctor", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    problems = [each["what"] for each in map(json.loads, done.stdout.splitlines()) if each["verdict"] == "problem"]
    assert any("PostgreSQL can't be reached" in each for each in problems)
    assert any("Valkey can't be reached" in each for each in problems)
    assert b"CANARY" not in done.stdout + done.stderr
