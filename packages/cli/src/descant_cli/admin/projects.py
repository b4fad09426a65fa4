"""`descant admin project`."""

from typing import Final

import click

from descant_cli.admin.allow_lists import AllowLists, takes_allow_lists
from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.teams import team_id

COLUMNS: Final = ("name", "team_id", "allowed_models", "allowed_adapters", "id")


@click.group()
def project() -> None:
    """Projects: parts of a team that keys can belong to."""


@project.command("create")
@click.argument("team")
@click.argument("name")
@takes_allow_lists
@json_option
@click.pass_obj
def create(client: AdminClient, team: str, name: str, allowed: AllowLists, as_json: bool) -> None:
    """Create a project of TEAM (name or id). Its lists can only narrow the team's."""
    body = {"team_id": team_id(client, team), "name": name, **allowed.fields}
    show_row(client.post("/projects", body), COLUMNS, as_json=as_json)


@project.command("list")
@click.option("--team", help="Only this team's projects.")
@json_option
@click.pass_obj
def list_all(client: AdminClient, team: str | None, as_json: bool) -> None:
    """List the projects."""
    query = {} if team is None else {"team_id": team_id(client, team)}
    show_rows(client.rows("/projects", query), COLUMNS, as_json=as_json)


@project.command("set")
@click.argument("project_id", metavar="ID", type=click.UUID)
@takes_allow_lists
@json_option
@click.pass_obj
def set_lists(client: AdminClient, project_id: object, allowed: AllowLists, as_json: bool) -> None:
    """Change what a project may use; 'none' inherits the team's list again."""
    changed = client.patch(f"/projects/{project_id}", allowed.fields)
    show_row(changed, COLUMNS, as_json=as_json)


@project.command("delete")
@click.argument("project_id", metavar="ID", type=click.UUID)
@click.pass_obj
def delete(client: AdminClient, project_id: object) -> None:
    """Delete a project that never had a key."""
    client.delete(f"/projects/{project_id}")
    click.echo(f"Deleted {project_id}.")
