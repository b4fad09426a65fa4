"""The command: every examination in turn, one line a finding; exit status 1 if there is a problem."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Final

import click
import msgspec

from descant_gateway.config import ConfigError, GatewayConfig
from descant_gateway.doctor.databases import examine_postgres, examine_valkey
from descant_gateway.doctor.finding import Finding, Verdict, problem
from descant_gateway.doctor.surroundings import examine_surroundings
from descant_gateway.doctor.upstreams import examine_catalogue
from descant_gateway.store.session import create_engine

_SIGNS: Final = {Verdict.GOOD: "ok     ", Verdict.WARNING: "WARNING", Verdict.PROBLEM: "PROBLEM"}


async def examine(env: Mapping[str, str]) -> AsyncIterator[Finding]:
    """All that can be said of the deployment whose gateway has this environment. No finding holds a secret."""
    try:
        config = GatewayConfig.from_environment(env)
    except ConfigError as error:
        for line in str(error).splitlines()[1:]:
            yield problem(line.strip(), "set it as docs/operations.md says")
        return
    for finding in examine_surroundings(config):
        yield finding
    engine = create_engine(config.database.url, pool_size=1)
    try:
        has_database = True
        async for finding in examine_postgres(config, engine):
            has_database = has_database and finding.verdict is not Verdict.PROBLEM
            yield finding
        async for finding in examine_valkey(config):
            yield finding
        if has_database:
            async for finding in examine_catalogue(config, engine):
                yield finding
    finally:
        await engine.dispose()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def doctor(as_json: bool) -> None:
    """Check the deployment of the gateway whose DESCANT_* variables are set here.

    Exits with 1 if there is a problem.
    """
    findings = asyncio.run(_collect())
    for finding in findings:
        click.echo(msgspec.json.encode(finding).decode() if as_json else _line(finding))
    sys.exit(1 if any(finding.verdict is Verdict.PROBLEM for finding in findings) else 0)


async def _collect() -> list[Finding]:
    return [finding async for finding in examine(os.environ)]


def _line(finding: Finding) -> str:
    return f"{_SIGNS[finding.verdict]}  {finding.what}" + (f"\n         -> {finding.to_do}" if finding.to_do else "")
