"""`descant admin usage` and `descant admin chargeback`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import click

from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.option_values import takes
from descant_cli.admin.organizations import organization_id
from descant_cli.admin.output import json_option, show_json, show_rows
from descant_cli.admin.teams import team_id
from descant_cli.admin.urls import segment

SUMS: Final = (
    "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "estimated_requests", "cost_microdollars"
)  # fmt: skip
DIMENSIONS: Final = (
    "hour", "day", "month", "organization", "team", "project", "key", "model", "adapter", "outcome"
)  # fmt: skip
CHARGEBACK: Final = (
    "organization", "team", "project", "model", "price_version", "requests", "prompt_tokens", "cached_tokens",
    "completion_tokens", "cost_microdollars",
)  # fmt: skip
TAG_PREFIX: Final = "tag:"
DAY: Final = click.DateTime(formats=["%Y-%m-%d"])


class Dimension(click.ParamType):  # type: ignore[type-arg]
    """One of DIMENSIONS, or a tag's name."""

    name = "dimension"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text not in DIMENSIONS and not (text.startswith(TAG_PREFIX) and len(text) > len(TAG_PREFIX)):
            self.fail(f"{text!r} is none of {', '.join(DIMENSIONS)} and not tag:NAME.", param, ctx)
        return text


@dataclass(frozen=True, slots=True)
class Days:
    """Both count; None where none was given."""

    first_day: datetime | None
    last_day: datetime | None

    @property
    def query(self) -> dict[str, str]:
        given = {"first_day": self.first_day, "last_day": self.last_day}
        return {name: f"{day:%Y-%m-%d}" for name, day in given.items() if day}


@dataclass(frozen=True, slots=True)
class LedgerPart:
    """Whose and which requests are summed; all where nothing was given."""

    team: str | None
    organization: str | None
    project_id: UUID | None
    key_id: str | None
    model: str | None
    tag: str | None

    def query(self, client: AdminClient) -> dict[str, str]:
        """Names are looked up. Raises click.ClickException for one that nothing has."""
        given = {
            "team_id": self.team and team_id(client, self.team),
            "organization_id": self.organization and organization_id(client, self.organization),
            "project_id": self.project_id and str(self.project_id),
            "key_id": self.key_id and str(client.get(f"/keys/{segment(self.key_id)}")["id"]),
            "model": self.model,
            "tag": self.tag,
        }
        return {name: value for name, value in given.items() if value}


takes_days = takes(
    "days",
    Days,
    click.option("--from", "first_day", type=DAY, help="First day, UTC; 30 days before the last if not given."),
    click.option("--to", "last_day", type=DAY, help="Last day, UTC; today if not given."),
)
takes_part = takes(
    "part",
    LedgerPart,
    click.option("--team", help="Only this team."),
    click.option("--organization", help="Only this organization."),
    click.option("--project", "project_id", type=click.UUID, help="Only this project."),
    click.option("--key", "key_id", help="Only this key."),
    click.option("--model", help="Only this model or adapter."),
    click.option("--tag", help="Only what has this tag: NAME=VALUE."),
)


@click.command()
@takes_days
@click.option("--by", "dimensions", type=Dimension(), multiple=True, default=("team", "model"),
              show_default=True, help=f"One row for each {', '.join(DIMENSIONS)}, tag:NAME; repeat it.")  # fmt: skip
@takes_part
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@click.pass_obj
def usage(
    client: AdminClient,
    days: Days,
    dimensions: tuple[str, ...],
    part: LedgerPart,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show requests, tokens and cost out of the ledger."""
    query = {"group_by": ",".join(dimensions), **days.query, **part.query(client)}
    if as_csv:
        click.echo(client.get_text("/usage", {**query, "format": "csv"}), nl=False)
    elif as_json:
        show_json(client.get("/usage", query))
    else:
        rows = (_with_tags(row) for row in client.rows("/usage", query))
        show_rows(rows, (*dimensions, *SUMS), as_json=False)


@click.command()
@click.option("--month", help="A year and a month, such as 2026-11; this month if not given.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with prices and dollars.")
@json_option
@click.pass_obj
def chargeback(client: AdminClient, month: str | None, as_csv: bool, as_json: bool) -> None:
    """Show what each team owes for a month, by model and version of its price."""
    query = {"month": month} if month else {}
    if as_csv:
        click.echo(client.get_text("/usage/chargeback", {**query, "format": "csv"}), nl=False)
    elif as_json:
        show_json(client.get("/usage/chargeback", query))
    else:
        show_rows(client.rows("/usage/chargeback", query), CHARGEBACK, as_json=False)


def _with_tags(row: Fields) -> Fields:
    """Each tag as a field of its own."""
    tags = row.get("tags")
    return row if not isinstance(tags, dict) else {**row, **{f"{TAG_PREFIX}{name}": tags[name] for name in tags}}
