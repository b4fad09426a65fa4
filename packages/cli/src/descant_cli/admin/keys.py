"""`descant admin key`."""

from datetime import UTC, datetime, timedelta
from typing import Final

import click

from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.limits import limit_fields, models_option, requests_option, tokens_option
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.teams import team_id
from descant_cli.admin.urls import segment

COLUMNS: Final = ("public_id", "name", "team_id", "requests_per_minute", "tokens_per_minute", "allowed_models",
                  "expires_at", "revoked_at")  # fmt: skip


@click.group()
def key() -> None:
    """Keys of teams. Commands take a key's public id (dsc_<public id>_...) or its id."""


@key.command("create")
@click.argument("team")
@click.option("--name", required=True, help="Who or what will use it.")
@requests_option
@tokens_option
@models_option
@click.option("--ip-range", "ip_ranges", multiple=True, help="Allow only these addresses (CIDR); may be repeated.")
@click.option("--expires-in-days", type=click.IntRange(min=1, max=3650))
@json_option
@click.pass_obj
def create(
    client: AdminClient,
    team: str,
    name: str,
    requests_per_minute: int | str | None,
    tokens_per_minute: int | str | None,
    models: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Create a key for TEAM (name or id). Its text is shown this once."""
    fields = limit_fields(requests_per_minute, tokens_per_minute, models)
    if expires_in_days is not None:
        fields["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_in_days)).isoformat()
    body = {"team_id": team_id(client, team), "name": name, "ip_ranges": list(ip_ranges), **fields}
    _show_issued(client.post("/keys", body), as_json=as_json)


@key.command("list")
@click.option("--team", help="Only this team's keys.")
@json_option
@click.pass_obj
def list_all(client: AdminClient, team: str | None, as_json: bool) -> None:
    """List the keys, without their secrets."""
    query = {} if team is None else {"team_id": team_id(client, team)}
    show_rows(client.rows("/keys", query), COLUMNS, as_json=as_json)


@key.command("revoke")
@click.argument("key_id", metavar="KEY")
@json_option
@click.pass_obj
def revoke(client: AdminClient, key_id: str, as_json: bool) -> None:
    """Revoke a key, for good. Gateways refuse it within a second."""
    show_row(client.post(f"/keys/{segment(key_id)}/revoke"), COLUMNS, as_json=as_json)


@key.command("rotate")
@click.argument("key_id", metavar="KEY")
@click.option("--grace-hours", type=click.FloatRange(min=0, max=24 * 90), default=24.0, show_default=True,
              help="How long the present secret works beside the new one.")  # fmt: skip
@json_option
@click.pass_obj
def rotate(client: AdminClient, key_id: str, grace_hours: float, as_json: bool) -> None:
    """Give a key a new secret. Its text is shown this once."""
    issued = client.post(f"/keys/{segment(key_id)}/rotate", {"grace_s": round(grace_hours * 3600)})
    _show_issued(issued, as_json=as_json)


def _show_issued(issued: Fields, *, as_json: bool) -> None:
    show_row(issued, ("api_key", *COLUMNS), as_json=as_json)
    click.echo("Keep the api key now: it cannot be shown again.", err=True)
