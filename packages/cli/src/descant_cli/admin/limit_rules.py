"""`descant admin limits set`, `list` and `delete`: what organizations, teams, projects and keys may use."""

from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows

COLUMNS: Final = ("level", "owner_id", "kind", "model", "capacity", "is_shadow", "warn_at", "id")
LEVELS: Final = click.Choice(["organization", "team", "project", "key"])
KINDS: Final = click.Choice([
    "requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrent_requests",
    "money_per_day", "money_per_week", "money_per_month",
])  # fmt: skip


@click.command("set")
@click.argument("level", type=LEVELS)
@click.argument("owner_id", metavar="OWNER_ID", type=click.UUID)
@click.argument("kind", type=KINDS)
@click.argument("capacity", type=click.IntRange(min=0))
@click.option("--model", help="Count only this adapter, or this model and its adapters.")
@click.option("--shadow", "is_shadow", is_flag=True, help="Count and report, never refuse.")
@click.option("--warn-at", type=click.IntRange(1, 100), multiple=True, help="Percent used; may be repeated.")
@json_option
@click.pass_obj
def set_limit(
    client: AdminClient,
    level: str,
    owner_id: object,
    kind: str,
    capacity: int,
    model: str | None,
    is_shadow: bool,
    warn_at: tuple[int, ...],
    as_json: bool,
) -> None:
    """Set the limit of this owner, kind and model: requests, tokens or micro-dollars."""
    body = {
        "level": level,
        "owner_id": str(owner_id),
        "kind": kind,
        "capacity": capacity,
        "model": model,
        "is_shadow": is_shadow,
        "warn_at": list(warn_at),
    }
    show_row(client.put("/limits", body), COLUMNS, as_json=as_json)


@click.command("list")
@click.option("--level", type=LEVELS, help="With --owner: whose.")
@click.option("--owner", "owner_id", type=click.UUID, help="The id of the organization, team, project or key.")
@json_option
@click.pass_obj
def list_limits(client: AdminClient, level: str | None, owner_id: object | None, as_json: bool) -> None:
    """List one owner's limits, or all for those who see the whole installation."""
    if (level is None) != (owner_id is None):
        raise click.UsageError("Give --level and --owner, or neither.")
    query = {} if level is None else {"level": level, "owner_id": str(owner_id)}
    show_rows(client.rows("/limits", query), COLUMNS, as_json=as_json)


@click.command("delete")
@click.argument("limit_id", metavar="ID", type=click.UUID)
@click.pass_obj
def delete_limit(client: AdminClient, limit_id: object) -> None:
    """Lift a limit; `limits list` tells its id."""
    client.delete(f"/limits/{limit_id}")
    click.echo(f"Deleted {limit_id}.")
