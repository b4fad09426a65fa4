"""`descant admin key`."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import click

from descant_cli.admin.allow_lists import AllowLists, takes_allow_lists
from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.limits import RateLimits, takes_rate_limits
from descant_cli.admin.option_values import takes
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


@dataclass(frozen=True, slots=True)
class Restrictions:
    """Where and for how long a key works; empty or None where nothing was given."""

    scopes: tuple[str, ...]
    ip_ranges: tuple[str, ...]
    expires_in_days: int | None

    @property
    def fields(self) -> dict[str, object]:
        fields: dict[str, object] = {}
        if self.scopes:
            fields["scopes"] = list(self.scopes)
        if self.ip_ranges:
            fields["ip_ranges"] = list(self.ip_ranges)
        if self.expires_in_days is not None:
            fields["expires_at"] = (datetime.now(UTC) + timedelta(days=self.expires_in_days)).isoformat()
        return fields


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom in the team a key is for, and what it may administer."""

    project_id: UUID | None
    service_account_id: UUID | None
    role: str | None

    @property
    def fields(self) -> dict[str, object]:
        given = {"project_id": self.project_id, "service_account_id": self.service_account_id, "role": self.role}
        return {name: str(value) for name, value in given.items() if value is not None}


takes_restrictions = takes(
    "restrictions",
    Restrictions,
    click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True,
                 help="Open only this endpoint; may be repeated."),
    click.option("--ip-range", "ip_ranges", multiple=True,
                 help="Allow only these addresses (CIDR); may be repeated."),
    click.option("--expires-in-days", type=click.IntRange(min=1, max=3650)),
)  # fmt: skip
takes_holder = takes(
    "holder",
    Holder,
    click.option("--project", "project_id", type=click.UUID, help="The id of a project of the team."),
    click.option("--service-account", "service_account_id", type=click.UUID, help="The id of the account it is for."),
    click.option("--role", type=ROLES, help="Let it administer, with this role; adds the scope admin."),
)


@click.group()
def key() -> None:
    """Keys of teams. Commands take a key's public id (dsc_<public id>_...) or its id."""


@key.command("create")
@click.argument("team")
@click.option("--name", required=True, help="Who or what will use it.")
@takes_rate_limits
@takes_allow_lists
@takes_restrictions
@takes_holder
@json_option
@click.pass_obj
def create(
    client: AdminClient,
    team: str,
    name: str,
    rates: RateLimits,
    allowed: AllowLists,
    restrictions: Restrictions,
    holder: Holder,
    as_json: bool,
) -> None:
    """Create a key for TEAM (name or id). Its text is shown this once."""
    fields = rates.fields | allowed.fields
    if holder.role and ADMIN not in restrictions.scopes:
        restrictions = replace(restrictions, scopes=(*restrictions.scopes, ADMIN))
    fields |= restrictions.fields | holder.fields
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
@takes_rate_limits
@takes_allow_lists
@takes_restrictions
@json_option
@click.pass_obj
def change(
    client: AdminClient,
    key_id: str,
    name: str | None,
    rates: RateLimits,
    allowed: AllowLists,
    restrictions: Restrictions,
    as_json: bool,
) -> None:
    """Change a key; what is not given stays."""
    fields = rates.fields | allowed.fields
    fields |= restrictions.fields | ({} if name is None else {"name": name})
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


def _show_issued(issued: Fields, *, as_json: bool) -> None:
    show_row(issued, ("api_key", *COLUMNS), as_json=as_json)
    click.echo("Keep the api key now: it cannot be shown again.", err=True)
