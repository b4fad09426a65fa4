"""`descant up`: the options, the order of events, the last words."""

from pathlib import Path

import click
from rich.console import Console

from descant_cli.up import services
from descant_cli.up.data_folder import DataFolder, Secrets, open_data_folder
from descant_cli.up.embedded import create_database, postgres, postgres_url, valkey
from descant_cli.up.options import UpOptions, find_adapters, find_model, free_port, require_free_port
from descant_cli.up.problem import StopRequested, UpProblem
from descant_cli.up.progress import ProgressLines
from descant_cli.up.registration import register
from descant_cli.up.stack import Stack
from descant_cli.up.stop_signals import catch_stop_signals
from descant_cli.up.welcome import welcome

DATABASE_TIMEOUT_S = 60.0
GATEWAY_TIMEOUT_S = 60.0
MODEL_TIMEOUT_S = 1800.0
"""Loading a large model from a slow disk."""


@click.command()
@click.option(
    "--model", help="A model folder, a .gguf file or a hub id. Default: SmolLM2-135M-Instruct from its wheel."
)
@click.option(
    "--adapters",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A folder of PEFT folders; each is served under its folder's name. Default: demo/adapters, if it is there.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="The gateway's port.")
@click.option("--engine-port", type=click.IntRange(1, 65535), help="The engine's port. Default: a free one.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path(".descant"),
    show_default=True,
    help="Where database, counters, logs and secrets are kept from one start to the next.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def up(
    model: str | None, adapters: Path | None, port: int, engine_port: int | None, data_dir: Path, device: str
) -> None:
    """Start everything on this machine: PostgreSQL, Valkey, one engine and the gateway. Ctrl-C stops it all."""
    console = Console()
    try:
        model_path, model_name = find_model(model)
        options = UpOptions(
            data_dir=data_dir,
            model=model_path,
            model_name=model_name,
            adapters=find_adapters(adapters),
            device=device,
            gateway_port=port,
            engine_port=engine_port or free_port(),
        )
        run(options, console)
    except (UpProblem, OSError) as problem:
        _explain(problem)
        raise click.exceptions.Exit(1) from problem


def run(options: UpOptions, console: Console) -> None:
    """Start, serve until asked to stop, stop. Whatever happens, nothing is left running."""
    with open_data_folder(options.data_dir) as folder, catch_stop_signals() as signals:
        require_free_port(options.gateway_port, "--port")
        require_free_port(options.engine_port, "--engine-port")
        try:
            with Stack(folder, signals) as stack:
                secrets = _start(stack, options, folder, ProgressLines(console))
                welcome(options, secrets)
                stack.watch()
        except StopRequested:
            console.print(f"Stopped. The data stay in {folder.path}.", highlight=False)


def _start(stack: Stack, options: UpOptions, folder: DataFolder, progress: ProgressLines) -> Secrets:
    """The engine first: its model loads while the rest comes up."""
    secrets = folder.secrets()
    engine = services.engine(options, secrets)
    stack.start(engine)
    with progress.step("PostgreSQL and Valkey"):
        create_database(folder)
        for part in (postgres(folder), valkey(folder)):
            stack.start(part)
            stack.wait_ready(part, DATABASE_TIMEOUT_S)
    with progress.step("database schema"):
        stack.run_once("migrate", services.MIGRATE, {"DESCANT_DATABASE_URL": postgres_url(folder)})
    with progress.step("gateway"):
        gateway = services.gateway(options, folder, secrets)
        stack.start(gateway)
        stack.wait_ready(gateway, GATEWAY_TIMEOUT_S)
    with progress.step(f"engine with {options.model_name} and {len(options.adapters)} adapters"):
        stack.wait_ready(engine, MODEL_TIMEOUT_S)
    with progress.step("backend, models and key"):
        return register(options, folder, secrets)


def _explain(problem: UpProblem | OSError) -> None:
    if isinstance(problem, OSError):
        click.echo(f"Error: {problem}. Nothing is left running.", err=True)
        return
    click.echo(f"Error: {problem}", err=True)
    if problem.log_tail:
        click.echo(f"Its last lines:\n{problem.log_tail}", err=True)
