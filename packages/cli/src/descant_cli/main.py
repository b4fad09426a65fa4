"""The `descant` command. A subcommand's module is imported when it runs: `descant --help` waits for no torch."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import click


class Subcommand(NamedTuple):
    summary: str
    target: str
    """module:attribute of the click command."""
    distribution: str
    """What to install where the module is missing."""


_UP = "Start everything on this machine: database, engine, gateway."
_SERVE = "Serve a model and its adapters over HTTP."
_GATEWAY = "Run the gateway in front of engines."
_RUN_BATCH = "Answer a file of requests in OpenAI's batch format."
_DOCTOR = "Check a deployment, say what is wrong and what to do."
_CHAT = "Talk to a model or an adapter in the terminal."
_ADMIN = "Manage teams, keys and usage of a gateway."
_BENCH = "Measure an engine or a gateway."
_VERSION = "Show the versions of Descant and what it runs on."

SUBCOMMANDS: Final[Mapping[str, Subcommand]] = MappingProxyType(
    {
        "up": Subcommand(_UP, "descant_cli.up.command:up", "descant-cli[up]"),
        "serve": Subcommand(_SERVE, "descant_server.main:serve", "descant-server"),
        "gateway": Subcommand(_GATEWAY, "descant_gateway.main:gateway", "descant-gateway"),
        "doctor": Subcommand(_DOCTOR, "descant_gateway.doctor.command:doctor", "descant-gateway"),
        "chat": Subcommand(_CHAT, "descant_cli.chat.command:chat", "descant-cli"),
        "run-batch": Subcommand(_RUN_BATCH, "descant_cli.run_batch.command:run_batch_command", "descant-cli[engine]"),
        "admin": Subcommand(_ADMIN, "descant_cli.admin:admin", "descant-cli"),
        "bench": Subcommand(_BENCH, "descant_bench.main:bench", "descant-bench"),
        "version": Subcommand(_VERSION, "descant_cli.version:version", "descant-cli"),
    }
)


class LazyGroup(click.Group):
    """Knows its subcommands by name and summary alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        subcommand = SUBCOMMANDS.get(cmd_name)
        return load(subcommand) if subcommand else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in SUBCOMMANDS:
            ctx.fail(f"No such command {args[0]!r}. There are: {', '.join(SUBCOMMANDS)}.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.summary) for name, subcommand in SUBCOMMANDS.items()])


def load(subcommand: Subcommand) -> click.Command:
    """Import a subcommand.

    Raises:
        click.ClickException: its distribution is not installed; the message says how to get it.
    """
    module_name, attribute = subcommand.target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"This command needs the module {error.name}: pip install '{subcommand.distribution}'"
        ) from error
    command = getattr(module, attribute)
    assert isinstance(command, click.Command)
    return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Descant serves one language model and every team's LoRA adapters, with keys, limits and usage."""
