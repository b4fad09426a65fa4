"""`descant admin limits`, and `rebuild` of it: the counters behind the budgets."""

from typing import Final

import click

from descant_cli.admin.client import AdminClient
from descant_cli.admin.output import json_option, show_json, show_rows

COLUMNS: Final = ("level", "owner_id", "kind", "model", "difference")


@click.group()
def limits() -> None:
    """What may be used, and the counters of it."""


@limits.command()
@click.option("--dry-run", is_flag=True, help="Only show which counters differ.")
@json_option
@click.pass_obj
def rebuild(client: AdminClient, dry_run: bool, as_json: bool) -> None:
    """Make the counters of budgets what the ledger says, and show which were not.

    Gateways do so by themselves where a counter has less than the ledger, as after Valkey lost its data. The difference
    is the ledger's sum less the counter's, in tokens or micro-dollars.
    """
    found = client.post(f"/limits/rebuild?dry_run={'true' if dry_run else 'false'}")
    rows = found.get("data")
    if as_json:
        show_json(rows)
    elif not rows:
        click.echo("Every counter is what the ledger says.")
    else:
        show_rows(rows if isinstance(rows, list) else (), COLUMNS, as_json=False)
