"""The command `descant chat`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from descant_cli.chat.client import ChatClient, ChatProblem
from descant_cli.chat.conversation import Conversation
from descant_cli.up.data_folder import read_secrets
from descant_cli.up.problem import UpProblem

DEFAULT_URL: Final = "http://127.0.0.1:8080"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url", envvar="DESCANT_GATEWAY_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
    help="A gateway, `descant serve`, or any server with OpenAI's API.",
)  # fmt: skip
@click.option("--api-key", envvar="DESCANT_API_KEY", show_envvar=True, help="Better given by the environment.")
@click.option("--model", help="A model or an adapter; the server's first one by default.")
@click.option("--system", "system_prompt", help="The system prompt.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=Path(".descant"), show_default=True,
    help="Where `descant up` keeps the key it made: taken if none is given and the gateway is on this machine.",
)  # fmt: skip
def chat(url: str, api_key: str | None, model: str | None, system_prompt: str | None, data_dir: Path) -> None:
    """Talk to a model in the terminal; /help shows what else a line can say.

    Without a terminal, every line of standard input is a turn, and the answers go to standard output; the exit status
    is 1 if any of them failed.
    """
    with ChatClient(url, api_key or local_team_key(url, data_dir)) as client:
        try:
            name = model or _first_model(client)
        except ChatProblem as problem:
            raise click.ClickException(str(problem)) from problem
        conversation = Conversation(client, name, _write, lambda line: click.secho(line, dim=True, err=True))
        conversation.system = system_prompt
        hold(conversation)
    if conversation.has_failed and not sys.stdin.isatty():
        raise SystemExit(1)


def hold(conversation: Conversation) -> None:
    """Line by line, until the user leaves or there are no more."""
    for line in _lines(conversation):
        if not conversation.take(line):
            return


def local_team_key(url: str, data_dir: Path) -> str | None:
    """Of the `descant up` on this machine; None where there is none, or where `url` is another machine's."""
    try:
        if urlsplit(url).hostname not in LOOPBACK:
            return None
        return read_secrets(data_dir.expanduser()).team_key
    except (OSError, ValueError, UpProblem):
        return None


def _first_model(client: ChatClient) -> str:
    models = client.models()
    if not models:
        raise ChatProblem(f"{client.base_url} serves no model that this key may use")
    return models[0]


def _lines(conversation: Conversation) -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401  gives input() its history and editing

    click.secho(f"{conversation.model}: /help shows what else a line can say", dim=True, err=True)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:  # throws the line away, as a shell does
            print()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
