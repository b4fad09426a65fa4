"""`descant admin team set`, `fair-share` and `prompts`: what a team is allowed, gets, and had logged."""

from itertools import islice
from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.limits import LIFTED, LimitParam
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.teams import team_id

COLUMNS: Final = ("name", "allows_external", "prompt_log_days", "response_cache_s", "id")
PROMPT_COLUMNS: Final = ("at", "key_id", "request_id", "model", "request")


@click.command("set")
@click.argument("name_or_id", metavar="TEAM")
@click.option("--external/--no-external", default=None, help="Whether its prompts may leave the house.")
@click.option("--prompt-log-days", type=LimitParam(), help="Keep its prompts, sealed, so long; 'none' logs nothing.")
@click.option("--response-cache-s", type=LimitParam(), help="Use whole replies again so long; 'none' never does.")
@json_option
@click.pass_obj
def set_privacy(
    client: AdminClient,
    name_or_id: str,
    external: bool | None,
    prompt_log_days: int | str | None,
    response_cache_s: int | str | None,
    as_json: bool,
) -> None:
    """Change what may become of a team's prompts and replies; what is not given stays."""
    given = {
        "allows_external": external,
        "prompt_log_days": prompt_log_days,
        "response_cache_s": response_cache_s,
    }
    fields = {name: None if value == LIFTED else value for name, value in given.items() if value is not None}
    if not fields:
        raise click.UsageError("Nothing to change: give --external, --prompt-log-days or --response-cache-s.")
    show_row(client.patch(f"/teams/{team_id(client, name_or_id)}", fields), COLUMNS, as_json=as_json)


@click.command("fair-share")
@click.argument("name_or_id", metavar="TEAM")
@click.option("--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher goes first.")
@click.option("--weight", type=click.IntRange(1, 1000), default=1, show_default=True, help="Its part of the tokens.")
@json_option
@click.pass_obj
def fair_share(client: AdminClient, name_or_id: str, priority: int, weight: int, as_json: bool) -> None:
    """Set a team's turn while backends are saturated."""
    body = {"priority": priority, "weight": weight}
    put = client.put(f"/fair-shares/{team_id(client, name_or_id)}", body)
    show_row(put, ("priority", "weight"), as_json=as_json)


@click.command("prompts")
@click.argument("name_or_id", metavar="TEAM")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first.")
@json_option
@click.pass_obj
def prompts(client: AdminClient, name_or_id: str, last: int, as_json: bool) -> None:
    """Read what a team had logged. That you did is in the audit log."""
    found = client.rows(f"/teams/{team_id(client, name_or_id)}/prompts", {"limit": str(min(last, 500))})
    show_rows(islice(found, last), PROMPT_COLUMNS, as_json=as_json)
