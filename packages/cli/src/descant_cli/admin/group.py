"""The `descant admin` group: where the gateway is, who asks, and the commands below."""

from pathlib import Path

import click

from descant_cli.admin.audit import audit
from descant_cli.admin.backends import backend
from descant_cli.admin.client import AdminClient
from descant_cli.admin.keys import key
from descant_cli.admin.limit_counters import limits
from descant_cli.admin.limit_rules import delete_limit, list_limits, set_limit
from descant_cli.admin.local_key import local_admin_key
from descant_cli.admin.models import model
from descant_cli.admin.organizations import organization
from descant_cli.admin.people import me, person, sign_in, sign_out
from descant_cli.admin.prices import price
from descant_cli.admin.projects import project
from descant_cli.admin.service_accounts import service_account
from descant_cli.admin.team_settings import fair_share, prompts, set_privacy
from descant_cli.admin.teams import team
from descant_cli.admin.usage import chargeback, usage
from descant_cli.admin.webhooks import webhook

DEFAULT_URL = "http://127.0.0.1:8080"


@click.group()
@click.option(
    "--url", envvar="DESCANT_GATEWAY_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
    help="Where the gateway is.",
)  # fmt: skip
@click.option("--admin-key", envvar="DESCANT_ADMIN_KEY", show_envvar=True, help="Better given by the environment.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=Path(".descant"), show_default=True,
    help="Where `descant up` keeps its admin key: taken if none is given and the gateway is on this machine.",
)  # fmt: skip
@click.pass_context
def admin(context: click.Context, url: str, admin_key: str | None, data_dir: Path) -> None:
    """Manage teams, keys, models, backends and usage of a gateway."""
    context.obj = context.with_resource(AdminClient(url, admin_key or local_admin_key(url, data_dir)))


organization.add_command(webhook)
for command in (set_privacy, fair_share, prompts):
    team.add_command(command)
for command in (set_limit, list_limits, delete_limit):
    limits.add_command(command)
for command in (
    organization, team, project, key, service_account, person, backend, model, price, limits,
    usage, chargeback, audit, sign_in, sign_out, me
):  # fmt: skip
    admin.add_command(command)
