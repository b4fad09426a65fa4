"""The command `descant run-batch`."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from descant_cli.run_batch.output import BadOutput, OutputFile
from descant_cli.run_batch.run import BatchStopped, Tally, run_batch
from descant_server.config import ServerConfig
from descant_server.engine_options import EngineOptions, takes_engine_options
from descant_server.model_options import ModelOptions, takes_model_options
from descant_server.options import MODEL, GroupedCommand, option

BATCH = "Batch"
MAX_LINE_BYTES = 1 << 30
UNLIMITED_QUEUE = 1 << 30


@click.command(
    "run-batch",
    cls=GroupedCommand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@option(
    BATCH,
    "-i",
    "--input-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests in OpenAI's batch format, one JSON object a line.",
)
@option(
    BATCH,
    "-o",
    "--output-file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Answers, one a line, as they come. What it already answers is not asked again.",
)
@option(MODEL, "--model", required=True, help="A folder of safetensors, a .gguf file, or a hub id.")
@takes_engine_options
@takes_model_options
def run_batch_command(
    input_file: Path, output_file: Path, model: str, engine: EngineOptions, names: ModelOptions
) -> None:
    """Answer a file of requests with an engine in this process, without a server.

    Run it again with the same files after an interruption: it goes on where it stopped. Requests that fail have their
    error as their answer.
    """
    config = ServerConfig(
        engine=engine.config(model, max_num_queued_requests=UNLIMITED_QUEUE, serves_adapters=names.names_adapters),
        served_model_names=names.served_model_names,
        adapters=names.adapters(model),
        lora_dir=names.lora_dir,
        max_body_bytes=MAX_LINE_BYTES,
    )
    answer_file(config, input_file, output_file)


def answer_file(config: ServerConfig, source: Path, target: Path) -> None:
    """Raises click.ClickException, with a line for the user, if it cannot be done to the end."""
    again = "Run the same command again to go on."
    try:
        with OutputFile.open(target) as output, _progress_bar() as tell:
            tally = asyncio.run(run_batch(config, source, output, tell))
    except (BadOutput, OSError) as error:
        raise click.ClickException(str(error)) from error
    except BatchStopped as stopped:
        raise click.ClickException(f"{stopped} {again}") from stopped
    except KeyboardInterrupt:
        raise click.ClickException(f"Interrupted; the answers so far are in {target}. {again}") from None
    skipped = f", {tally.skipped} were there already" if tally.skipped else ""
    click.echo(f"{tally.answered} answered, {tally.failed} failed{skipped}: {target}", err=True)


@contextmanager
def _progress_bar() -> Iterator[Callable[[Tally], None]]:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]}"))
    console = Console(file=sys.stderr)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("requests", total=None, failed="")

        def tell(tally: Tally) -> None:
            failed = f"{tally.failed} failed" if tally.failed else ""
            progress.update(task, total=tally.total, completed=tally.finished, failed=failed)

        yield tell
