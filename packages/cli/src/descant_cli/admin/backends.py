"""`descant admin backend`."""

from typing import Final, TextIO

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.limits import LIFTED, LimitParam
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.urls import path

COLUMNS: Final = ("name", "base_url", "protocol", "external", "has_api_key")


@click.group()
def backend() -> None:
    """Backends: the OpenAI-compatible servers that models run on."""


@backend.command("put")
@click.argument("name")
@click.argument("base_url")
@click.option("--api-key-file", type=click.File(), help="A file that holds the backend's API key; - reads stdin.")
@click.option("--no-api-key", is_flag=True, help="Remove the API key that is stored.")
@click.option("--protocol", type=click.Choice(["openai", "anthropic"]), default="openai", show_default=True)
@click.option("--external", is_flag=True, help="Outside the house: only for teams whose data may leave it.")
@json_option
@click.pass_obj
def put(
    client: AdminClient,
    name: str,
    base_url: str,
    api_key_file: TextIO | None,
    no_api_key: bool,
    protocol: str,
    external: bool,
    as_json: bool,
) -> None:
    """Create or change a backend at BASE_URL (http://host:port). Its stored API key stays unless another is given."""
    if api_key_file is not None and no_api_key:
        raise click.UsageError("Give --api-key-file or --no-api-key, not both.")
    body: dict[str, object] = {"name": name, "base_url": base_url, "protocol": protocol, "external": external}
    if api_key_file is not None:
        body["api_key"] = api_key_file.read().strip()
    if no_api_key:
        body["api_key"] = None
    show_row(client.put("/backends", body), COLUMNS, as_json=as_json)


@backend.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the backends."""
    show_rows(client.rows("/backends"), COLUMNS, as_json=as_json)


@backend.command("capacity")
@click.argument("name")
@click.argument("max_in_flight", metavar="N|none", type=LimitParam())
@json_option
@click.pass_obj
def capacity(client: AdminClient, name: str, max_in_flight: int | str, as_json: bool) -> None:
    """Let a backend have N requests at once, from all gateways together; more wait. 'none' lifts the bound."""
    body = {"backend": name, "max_in_flight": None if max_in_flight == LIFTED else max_in_flight}
    show_row(client.put("/capacities", body), ("backend", "max_in_flight"), as_json=as_json)


@backend.command("delete")
@click.argument("name")
@click.pass_obj
def delete(client: AdminClient, name: str) -> None:
    """Delete a backend that serves no model any more."""
    client.delete(f"/backends/{path(name)}")
    click.echo(f"Deleted {name}.")
