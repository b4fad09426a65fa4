"""`descant admin usage`."""

from datetime import datetime
from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_json, show_rows
from descant_cli.admin.teams import team_id
from descant_cli.admin.urls import segment

SUMS: Final = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "estimated_requests")
DIMENSIONS: Final = ("day", "team", "key", "model", "adapter", "outcome")
DAY: Final = click.DateTime(formats=["%Y-%m-%d"])


@click.command()
@click.option("--from", "first_day", type=DAY, help="First day, UTC; 30 days before the last if not given.")
@click.option("--to", "last_day", type=DAY, help="Last day, UTC; today if not given.")
@click.option("--by", "dimensions", type=click.Choice(DIMENSIONS), multiple=True, default=("team", "model"),
              show_default=True, help="One row for each; may be repeated.")  # fmt: skip
@click.option("--team", help="Only this team.")
@click.option("--key", "key_id", help="Only this key.")
@click.option("--model", help="Only this model or adapter.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@click.pass_obj
def usage(
    client: AdminClient,
    first_day: datetime | None,
    last_day: datetime | None,
    dimensions: tuple[str, ...],
    team: str | None,
    key_id: str | None,
    model: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show requests and tokens out of the ledger."""
    given = {
        "first_day": first_day and f"{first_day:%Y-%m-%d}",
        "last_day": last_day and f"{last_day:%Y-%m-%d}",
        "team_id": team and team_id(client, team),
        "key_id": key_id and str(client.get(f"/keys/{segment(key_id)}")["id"]),
        "model": model,
    }
    query = {"group_by": ",".join(dimensions), **{name: value for name, value in given.items() if value}}
    if as_csv:
        click.echo(client.get_text("/usage", {**query, "format": "csv"}), nl=False)
    elif as_json:
        show_json(client.get("/usage", query))
    else:
        show_rows(client.rows("/usage", query), (*dimensions, *SUMS), as_json=False)
