"""`descant admin team`."""

from typing import Final
from uuid import UUID

import click

from descant_cli.admin.allow_lists import AllowLists, takes_allow_lists
from descant_cli.admin.client import AdminClient
from descant_cli.admin.limits import RateLimits, takes_rate_limits
from descant_cli.admin.output import json_option, show_row, show_rows

COLUMNS: Final = ("name", "organization", "requests_per_minute", "tokens_per_minute", "allowed_models", "id")

MORE_COLUMNS: Final = ("allowed_adapters", "allows_external", "prompt_log_days", "response_cache_s")


@click.group()
def team() -> None:
    """Teams: their limits and the models that they may use."""


@team.command("create")
@click.argument("name")
@click.option("--organization", default="default", show_default=True)
@takes_rate_limits
@takes_allow_lists
@json_option
@click.pass_obj
def create(
    client: AdminClient,
    name: str,
    organization: str,
    rates: RateLimits,
    allowed: AllowLists,
    as_json: bool,
) -> None:
    """Create a team. Without limits and models nothing limits it."""
    fields = rates.fields | allowed.fields
    show_row(client.post("/teams", {"name": name, "organization": organization, **fields}), COLUMNS, as_json=as_json)


@team.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the teams."""
    show_rows(client.rows("/teams"), COLUMNS, as_json=as_json)


@team.command("show")
@click.argument("name_or_id", metavar="TEAM")
@json_option
@click.pass_obj
def show(client: AdminClient, name_or_id: str, as_json: bool) -> None:
    """Show a team."""
    show_row(client.get(f"/teams/{team_id(client, name_or_id)}"), (*COLUMNS, *MORE_COLUMNS), as_json=as_json)


@team.command("set-limits")
@click.argument("name_or_id", metavar="TEAM")
@takes_rate_limits
@takes_allow_lists
@click.option("--all-models", is_flag=True, help="Allow every model.")
@json_option
@click.pass_obj
def set_limits(
    client: AdminClient,
    name_or_id: str,
    rates: RateLimits,
    allowed: AllowLists,
    all_models: bool,
    as_json: bool,
) -> None:
    """Change a team's limits; what is not given stays, 'none' lifts a limit."""
    fields = rates.fields | allowed.fields
    if all_models and allowed.models:
        raise click.UsageError("Give --model or --all-models, not both.")
    if all_models:
        fields["allowed_models"] = None
    if not fields:
        raise click.UsageError("Nothing to change: give --rpm, --tpm, --model, --adapter or --all-models.")
    changed = client.patch(f"/teams/{team_id(client, name_or_id)}", fields)
    show_row(changed, COLUMNS, as_json=as_json)


def team_id(client: AdminClient, name_or_id: str) -> str:
    """The id of the team with this name or id. Raises click.ClickException if none or several have the name."""
    try:
        return str(UUID(name_or_id))
    except ValueError:
        found = list(client.rows("/teams", {"name": name_or_id}))
    if not found:
        raise click.ClickException(f"There is no team {name_or_id!r}. `descant admin team list` shows those there are.")
    if len(found) > 1:
        raise click.ClickException(f"{len(found)} organizations have a team {name_or_id!r}: give the team's id.")
    return str(found[0]["id"])
