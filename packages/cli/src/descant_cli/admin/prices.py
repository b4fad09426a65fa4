"""`descant admin price`: what models and adapters cost."""

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.urls import segment

COLUMNS: Final = ("model", "input", "cached", "output", "valid_from", "version")
MICRODOLLARS: Final = 1_000_000


class Dollars(click.ParamType):  # type: ignore[type-arg]
    """An exact amount, as micro-dollars."""

    name = "dollars"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            amount = Decimal(str(value)) * MICRODOLLARS
            is_amount = amount.is_finite() and amount >= 0 and amount == amount.to_integral_value()
        except InvalidOperation:
            is_amount = False
        if not is_amount:
            self.fail(f"{value!r} is not an amount in dollars with at most six decimals, such as 0.25.", param, ctx)
        return int(amount)


@click.group()
def price() -> None:
    """Set what models and adapters cost. Prices are kept in versions and never changed."""


@price.command("set")
@click.argument("model")
@click.option("--input", "input_price", type=Dollars(), required=True, help="Dollars per million tokens.")
@click.option("--cached", type=Dollars(), help="Of the input, what the prefix cache had; as --input if not given.")
@click.option("--output", type=Dollars(), required=True, help="Dollars per million tokens.")
@click.option("--from", "valid_from", type=click.DateTime(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
              help="From this moment on, in UTC; now if not given.")  # fmt: skip
@json_option
@click.pass_obj
def set_price(
    client: AdminClient,
    model: str,
    input_price: int,
    cached: int | None,
    output: int,
    valid_from: datetime | None,
    as_json: bool,
) -> None:
    """Set the price of MODEL from now on, or from a moment to come."""
    moment = valid_from and valid_from.replace(tzinfo=UTC).isoformat()
    body = {"model": model, "input": input_price, "cached": cached, "output": output, "valid_from": moment}
    show_row(client.put("/prices", body), COLUMNS, as_json=as_json)


@price.command("list")
@json_option
@click.pass_obj
def list_prices(client: AdminClient, as_json: bool) -> None:
    """Show the prices that hold now, in micro-dollars per million tokens."""
    show_rows(client.rows("/prices"), COLUMNS, as_json=as_json)


@price.command()
@click.argument("model", required=False)
@json_option
@click.pass_obj
def history(client: AdminClient, model: str | None, as_json: bool) -> None:
    """Show every version, of all models or of MODEL, those to come too."""
    show_rows(client.rows("/price-versions", {"model": model} if model else None), COLUMNS, as_json=as_json)


@price.command()
@click.argument("model")
@click.pass_obj
def withdraw(client: AdminClient, model: str) -> None:
    """From now on MODEL has no price of its own: an adapter has its base model's, a base model is free."""
    client.delete(f"/prices/{segment(model)}")
    click.echo(f"{model} has no price of its own any more.")


@price.command()
@click.argument("version", type=int)
@click.pass_obj
def cancel(client: AdminClient, version: int) -> None:
    """Take back a VERSION that has not begun."""
    client.delete(f"/price-versions/{version}")
    click.echo(f"Took back version {version}.")
