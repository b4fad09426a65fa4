"""`descant admin audit`."""

from itertools import islice
from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_rows

COLUMNS: Final = ("at", "actor_name", "action", "kind", "subject", "changed", "address", "request")


@click.command()
@click.option("--kind", help="Only changes of this: teams, keys, key_secrets, people, memberships, models, ...")
@click.option("--subject", help="Only changes of what has this id or name.")
@click.option("--actor", "actor_id", help="Only what this person (id) or key (public id) did.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first.")
@json_option
@click.pass_obj
def audit(
    client: AdminClient, kind: str | None, subject: str | None, actor_id: str | None, last: int, as_json: bool
) -> None:
    """Show who changed what. With --json, what it was before and after, too."""
    given = {"kind": kind, "subject": subject, "actor_id": actor_id, "limit": str(min(last, 500))}
    query = {name: value for name, value in given.items() if value is not None}
    show_rows(islice(client.rows("/audit", query), last), COLUMNS, as_json=as_json)
