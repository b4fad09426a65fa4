"""`descant admin organization webhook`: where an organization is told of limits that pass a threshold."""

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.organizations import organization_id
from descant_cli.admin.output import json_option, show_row


@click.group()
def webhook() -> None:
    """Where an organization is told of limits that pass a warning threshold."""


@webhook.command("set")
@click.argument("name_or_id", metavar="ORGANIZATION")
@click.argument("url")
@json_option
@click.pass_obj
def set_url(client: AdminClient, name_or_id: str, url: str, as_json: bool) -> None:
    """Send warnings to URL. The secret that signs them is shown this once, and new each time."""
    issued = client.put(f"/webhooks/{organization_id(client, name_or_id)}", {"url": url})
    show_row(issued, ("url", "secret"), as_json=as_json)
    click.echo("Keep the secret now: it cannot be shown again.", err=True)


@webhook.command("delete")
@click.argument("name_or_id", metavar="ORGANIZATION")
@click.pass_obj
def delete(client: AdminClient, name_or_id: str) -> None:
    """Send no more warnings."""
    client.delete(f"/webhooks/{organization_id(client, name_or_id)}")
    click.echo(f"{name_or_id} is not told of limits any more.")
