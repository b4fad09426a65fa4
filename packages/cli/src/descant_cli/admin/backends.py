"""`descant admin backend`."""

from typing import Final, TextIO

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.urls import path

COLUMNS: Final = ("name", "base_url", "has_api_key")


@click.group()
def backend() -> None:
    """Backends: the OpenAI-compatible servers that models run on."""


@backend.command("put")
@click.argument("name")
@click.argument("base_url")
@click.option("--api-key-file", type=click.File(), help="A file that holds the backend's API key; - reads stdin.")
@click.option("--no-api-key", is_flag=True, help="Remove the API key that is stored.")
@json_option
@click.pass_obj
def put(
    client: AdminClient, name: str, base_url: str, api_key_file: TextIO | None, no_api_key: bool, as_json: bool
) -> None:
    """Create or change a backend at BASE_URL (http://host:port). Its stored API key stays unless another is given."""
    if api_key_file is not None and no_api_key:
        raise click.UsageError("Give --api-key-file or --no-api-key, not both.")
    body: dict[str, object] = {"name": name, "base_url": base_url}
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


@backend.command("delete")
@click.argument("name")
@click.pass_obj
def delete(client: AdminClient, name: str) -> None:
    """Delete a backend that serves no model any more."""
    client.delete(f"/backends/{path(name)}")
    click.echo(f"Deleted {name}.")
