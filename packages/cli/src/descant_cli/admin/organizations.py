"""`descant admin organization`."""

from typing import Final
from uuid import UUID

import click

from descant_cli.admin.allow_lists import AllowLists, takes_allow_lists
from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.urls import segment

COLUMNS: Final = ("name", "allowed_models", "allowed_adapters", "id")


@click.group()
def organization() -> None:
    """What teams belong to; `default` is always there."""


@organization.command("create")
@click.argument("name")
@takes_allow_lists
@json_option
@click.pass_obj
def create(client: AdminClient, name: str, allowed: AllowLists, as_json: bool) -> None:
    """Create an organization. Without lists it may use every model."""
    body = {"name": name, **allowed.fields}
    show_row(client.post("/organizations", body), COLUMNS, as_json=as_json)


@organization.command("set")
@click.argument("name")
@takes_allow_lists
@json_option
@click.pass_obj
def set_lists(client: AdminClient, name: str, allowed: AllowLists, as_json: bool) -> None:
    """Change what an organization may use; 'none' allows everything."""
    changed = client.patch(f"/organizations/{segment(name)}", allowed.fields)
    show_row(changed, COLUMNS, as_json=as_json)


@organization.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the organizations."""
    show_rows(client.rows("/organizations"), COLUMNS, as_json=as_json)


def organization_id(client: AdminClient, name_or_id: str) -> str:
    """The id of the organization with this name or id. Raises click.ClickException."""
    try:
        return str(UUID(name_or_id))
    except ValueError:
        found = [row["id"] for row in client.rows("/organizations") if row.get("name") == name_or_id]
    if not found:
        raise click.ClickException(f"There is no organization {name_or_id!r} that you see.")
    return str(found[0])
