"""`descant admin service-account`."""

from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.teams import team_id

COLUMNS: Final = ("name", "role", "organization_id", "team_id", "disabled_at", "id")
ROLES: Final = click.Choice(["owner", "admin", "member", "viewer"])


@click.group("service-account")
def service_account() -> None:
    """Service accounts: what machines act as. `descant admin key create --service-account` makes their keys."""


@service_account.command("create")
@click.argument("name")
@click.option("--role", type=ROLES, required=True, help="At most yours.")
@click.option("--organization", default="default", show_default=True)
@click.option("--team", help="Over this team only, not all of the organization.")
@json_option
@click.pass_obj
def create(client: AdminClient, name: str, role: str, organization: str, team: str | None, as_json: bool) -> None:
    """Create a service account."""
    place = {"organization": organization} if team is None else {"team_id": team_id(client, team)}
    show_row(client.post("/service-accounts", {"name": name, "role": role, **place}), COLUMNS, as_json=as_json)


@service_account.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the service accounts."""
    show_rows(client.rows("/service-accounts"), COLUMNS, as_json=as_json)


@service_account.command("disable")
@click.argument("account_id", metavar="ID", type=click.UUID)
@json_option
@click.pass_obj
def disable(client: AdminClient, account_id: object, as_json: bool) -> None:
    """Disable a service account, for good, and revoke all its keys."""
    show_row(client.post(f"/service-accounts/{account_id}/disable"), COLUMNS, as_json=as_json)
