"""`descant admin model`."""

import json
from dataclasses import dataclass
from typing import Any, Final, TextIO

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.option_values import takes
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.urls import path

COLUMNS: Final = ("name", "parent", "alias_of", "upstream_name", "backends", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Described:
    """A model as the options describe it; None or empty where nothing was given."""

    backends: tuple[str, ...]
    parent: str | None
    alias_of: str | None
    upstream_name: str | None
    max_output_tokens: int | None
    weights: tuple[int, ...]
    policy_file: TextIO | None

    def fields(self) -> dict[str, object]:
        """Raises click.UsageError, or click.ClickException for a policy that can't be read."""
        if self.weights and len(self.weights) != len(self.backends):
            raise click.UsageError(
                f"Give one --weight for each --backend: {len(self.weights)} for {len(self.backends)}."
            )
        given: dict[str, object] = {
            "backends": list(self.backends) or None,
            "parent": self.parent,
            "alias_of": self.alias_of,
            "upstream_name": self.upstream_name,
            "max_output_tokens": self.max_output_tokens,
            "weights": list(self.weights) or None,
            "policy": None if self.policy_file is None else _policy(self.policy_file),
        }
        return {field: value for field, value in given.items() if value is not None}


takes_description = takes(
    "described",
    Described,
    click.option("--backend", "backends", multiple=True, help="Where it runs; may be repeated."),
    click.option("--parent", help="The base model of this adapter."),
    click.option("--alias-of", help="The model that this name stands for."),
    click.option("--upstream-name", help="What the backends call it, if not NAME."),
    click.option(
        "--max-output-tokens", type=click.IntRange(min=1), help="Reserved where a request names no max_tokens."
    ),
    click.option(
        "--weight",
        "weights",
        type=click.IntRange(min=1),
        multiple=True,
        help="The part of each --backend, in their order.",
    ),
    click.option(
        "--policy-file", type=click.File(), help="Its routing policy (fallbacks, canary, shadow, time limits) as JSON."
    ),
)


@click.group()
def model() -> None:
    """Models: base models, adapters (with --parent) and aliases (with --alias-of)."""


@model.command("put")
@click.argument("name")
@takes_description
@json_option
@click.pass_obj
def put(client: AdminClient, name: str, described: Described, as_json: bool) -> None:
    """Create or replace a model that clients may name."""
    show_row(client.put("/models", {"name": name, **described.fields()}), COLUMNS, as_json=as_json)


@model.command("list")
@json_option
@click.pass_obj
def list_all(client: AdminClient, as_json: bool) -> None:
    """List the models."""
    show_rows(client.rows("/models"), COLUMNS, as_json=as_json)


@model.command("delete")
@click.argument("name")
@click.pass_obj
def delete(client: AdminClient, name: str) -> None:
    """Delete a model that no adapter or alias needs."""
    client.delete(f"/models/{path(name)}")
    click.echo(f"Deleted {name}.")


def _policy(file: TextIO) -> Any:
    try:
        return json.load(file)
    except ValueError as error:
        raise click.ClickException(f"{file.name} is not JSON: {error}") from None
