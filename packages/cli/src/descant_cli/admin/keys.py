"""`descant admin key`."""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import click

from descant_cli.admin.allow_lists import adapters_option, list_fields, models_option
from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.limits import limit_fields, requests_option, tokens_option
from descant_cli.admin.output import json_option, show_row, show_rows
from descant_cli.admin.service_accounts import ROLES
from descant_cli.admin.teams import team_id
from descant_cli.admin.urls import segment

COLUMNS: Final = ("public_id", "name", "team_id", "requests_per_minute", "tokens_per_minute", "allowed_models",
                  "expires_at", "revoked_at")  # fmt: skip

MORE_COLUMNS: Final = ("allowed_adapters", "scopes", "role", "ip_ranges", "project_id", "service_account_id",
                       "created_by")  # fmt: skip
ADMIN: Final = "admin"
SCOPES: Final = (
    "chat", "completions", "responses", "embeddings", "rerank", "score", "tokenize", "models", "limits", "files",
    "batches", ADMIN,
)  # fmt: skip

scopes_option = click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True,
                             help="Open only this endpoint; may be repeated.")  # fmt: skip
ip_ranges_option = click.option("--ip-range", "ip_ranges", multiple=True,
                                help="Allow only these addresses (CIDR); may be repeated.")  # fmt: skip
expiry_option = click.option("--expires-in-days", type=click.IntRange(min=1, max=3650))


@click.group()
def key() -> None:
    """Keys of teams. Commands take a key's public id (dsc_<public id>_...) or its id."""


@key.command("create")
@click.argument("team")
@click.option("--name", required=True, help="Who or what will use it.")
@requests_option
@tokens_option
@models_option
@adapters_option
@scopes_option
@ip_ranges_option
@expiry_option
@click.option("--project", "project_id", type=click.UUID, help="The id of a project of the team.")
@click.option("--service-account", "service_account_id", type=click.UUID, help="The id of the account it is for.")
@click.option("--role", type=ROLES, help="Let it administer, with this role; adds the scope admin.")
@json_option
@click.pass_obj
def create(
    client: AdminClient,
    team: str,
    name: str,
    requests_per_minute: int | str | None,
    tokens_per_minute: int | str | None,
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    scopes: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    expires_in_days: int | None,
    project_id: UUID | None,
    service_account_id: UUID | None,
    role: str | None,
    as_json: bool,
) -> None:
    """Create a key for TEAM (name or id). Its text is shown this once."""
    fields = limit_fields(requests_per_minute, tokens_per_minute) | list_fields(models, adapters)
    fields |= _restrictions((*scopes, ADMIN) if role and ADMIN not in scopes else scopes, ip_ranges, expires_in_days)
    places = {"project_id": project_id, "service_account_id": service_account_id, "role": role}
    fields |= {name: str(value) for name, value in places.items() if value is not None}
    _show_issued(client.post("/keys", {"team_id": team_id(client, team), "name": name, **fields}), as_json=as_json)


@key.command("show")
@click.argument("key_id", metavar="KEY")
@json_option
@click.pass_obj
def show(client: AdminClient, key_id: str, as_json: bool) -> None:
    """Show a key, without its secret."""
    show_row(client.get(f"/keys/{segment(key_id)}"), (*COLUMNS, *MORE_COLUMNS), as_json=as_json)


@key.command("set")
@click.argument("key_id", metavar="KEY")
@click.option("--name", help="Who or what uses it.")
@requests_option
@tokens_option
@models_option
@adapters_option
@scopes_option
@ip_ranges_option
@expiry_option
@json_option
@click.pass_obj
def change(
    client: AdminClient,
    key_id: str,
    name: str | None,
    requests_per_minute: int | str | None,
    tokens_per_minute: int | str | None,
    models: tuple[str, ...],
    adapters: tuple[str, ...],
    scopes: tuple[str, ...],
    ip_ranges: tuple[str, ...],
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Change a key; what is not given stays."""
    fields = limit_fields(requests_per_minute, tokens_per_minute) | list_fields(models, adapters)
    fields |= _restrictions(scopes, ip_ranges, expires_in_days) | ({} if name is None else {"name": name})
    changed = client.patch(f"/keys/{segment(key_id)}", fields)
    show_row(changed, (*COLUMNS, *MORE_COLUMNS), as_json=as_json)


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


def _restrictions(
    scopes: tuple[str, ...], ip_ranges: tuple[str, ...], expires_in_days: int | None
) -> dict[str, object]:
    fields: dict[str, object] = {}
    if scopes:
        fields["scopes"] = list(scopes)
    if ip_ranges:
        fields["ip_ranges"] = list(ip_ranges)
    if expires_in_days is not None:
        fields["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_in_days)).isoformat()
    return fields


def _show_issued(issued: Fields, *, as_json: bool) -> None:
    show_row(issued, ("api_key", *COLUMNS), as_json=as_json)
    click.echo("Keep the api key now: it cannot be shown again.", err=True)
