"""`descant admin person`, `sign-in`, `sign-out` and `me`."""

from typing import Final, TextIO

import click

from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.output import json_option, show_json, show_row, show_rows
from descant_cli.admin.service_accounts import ROLES
from descant_cli.admin.teams import team_id
from descant_cli.admin.urls import segment

COLUMNS: Final = ("email", "name", "has_password", "oidc_issuer", "disabled_at", "id")
ROLE_COLUMNS: Final = ("role", "organization_id", "team_id", "id")


@click.group()
def person() -> None:
    """People who administer. Commands take an e-mail address or an id."""


@person.command("create")
@click.argument("email")
@click.option("--name", required=True)
@click.option("--password-file", type=click.File(), help="A file that holds a password; - reads stdin.")
@json_option
@click.pass_obj
def create(client: AdminClient, email: str, name: str, password_file: TextIO | None, as_json: bool) -> None:
    """Invite a person. Without a password they sign in with the provider, under this address."""
    password = None if password_file is None else password_file.read().rstrip("\n")
    show_row(client.post("/people", {"email": email, "name": name, "password": password}), COLUMNS, as_json=as_json)


@person.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the people with a role in what you administer."""
    show_rows(client.rows("/people"), COLUMNS, as_json=as_json)


@person.command("show")
@click.argument("name", metavar="PERSON")
@json_option
@click.pass_obj
def show(client: AdminClient, name: str, as_json: bool) -> None:
    """Show a person and their roles."""
    found = client.get(f"/people/{segment(name)}")
    if as_json:
        show_json(found)
        return
    show_row(found, COLUMNS, as_json=False)
    show_rows(_roles(found), ROLE_COLUMNS, as_json=False)


@person.command("set-password")
@click.argument("name", metavar="PERSON")
@click.option("--password-file", type=click.File(), required=True, help="A file that holds it; - reads stdin.")
@click.pass_obj
def set_password(client: AdminClient, name: str, password_file: TextIO) -> None:
    """Set a person's password, and end their sessions."""
    client.put_nothing_back(f"/people/{segment(name)}/password", {"password": password_file.read().rstrip("\n")})
    click.echo(f"{name} has a new password.")


@person.command("disable")
@click.argument("name", metavar="PERSON")
@json_option
@click.pass_obj
def disable(client: AdminClient, name: str, as_json: bool) -> None:
    """Disable a person, and end their sessions."""
    show_row(client.post(f"/people/{segment(name)}/disable"), COLUMNS, as_json=as_json)


@person.command("grant")
@click.argument("name", metavar="PERSON")
@click.option("--role", type=ROLES, required=True, help="At most yours.")
@click.option("--organization", help="Over this organization; without it and a team: over the installation.")
@click.option("--team", help="Over this team only.")
@json_option
@click.pass_obj
def grant(client: AdminClient, name: str, role: str, organization: str | None, team: str | None, as_json: bool) -> None:
    """Give a person a role; the one that they have at that place is replaced."""
    place: dict[str, object] = {"organization": organization}
    if team is not None:
        place = {"team_id": team_id(client, team)}
    given = client.post(f"/people/{segment(name)}/memberships", {"role": role, **place})
    show_row(given, ROLE_COLUMNS, as_json=as_json)


@person.command("withdraw")
@click.argument("name", metavar="PERSON")
@click.argument("membership_id", metavar="ROLE_ID", type=click.UUID)
@click.pass_obj
def withdraw(client: AdminClient, name: str, membership_id: object) -> None:
    """Withdraw a role; `person show` tells its id."""
    client.delete(f"/people/{segment(name)}/memberships/{membership_id}")
    click.echo(f"Withdrawn from {name}.")


@click.command("sign-in")
@click.argument("email")
@click.option("--password", prompt=True, hide_input=True)
@click.pass_obj
def sign_in(client: AdminClient, email: str, password: str) -> None:
    """Sign in by password. Prints what to set so that the other commands are yours."""
    session = client.sign_in({"email": email, "password": password})
    click.echo(f"export DESCANT_ADMIN_KEY={session['token']}")


@click.command("sign-out")
@click.pass_obj
def sign_out(client: AdminClient) -> None:
    """End the session that DESCANT_ADMIN_KEY holds."""
    client.post_nothing_back("/sign-out")


@click.command("me")
@click.pass_obj
def me(client: AdminClient) -> None:
    """Show who you are to the gateway, and your roles."""
    show_json({name: value for name, value in client.get("/me").items() if name != "csrf_token"})


def _roles(found: Fields) -> list[Fields]:
    roles = found.get("memberships")
    return roles if isinstance(roles, list) else []
