"""`descant admin organization`."""

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows


@click.group()
def organization() -> None:
    """What teams belong to; `default` is always there."""


@organization.command("create")
@click.argument("name")
@json_option
@click.pass_obj
def create(client: AdminClient, name: str, as_json: bool) -> None:
    """Create an organization."""
    show_row(client.post("/organizations", {"name": name}), ("name",), as_json=as_json)


@organization.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the organizations."""
    show_rows(client.rows("/organizations"), ("name",), as_json=as_json)
