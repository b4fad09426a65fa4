"""The command `descant run-batch`."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from descant_cli.run_batch.output import BadOutput, OutputFile
from descant_cli.run_batch.run import BatchStopped, Tally, run_batch
from descant_engine.config import Dtype, EngineConfig
from descant_server.config import AdapterSource, ServerConfig

MAX_LINE_BYTES = 1 << 30
UNLIMITED_QUEUE = 1 << 30


@click.command("run-batch", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "-i", "--input-file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requests in OpenAI's batch format, one JSON object a line.",
)  # fmt: skip
@click.option(
    "-o", "--output-file", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="Answers, one a line, as they come. What it already answers is not asked again.",
)  # fmt: skip
@click.option("--model", required=True, help="A folder of safetensors, a .gguf file, or a hub id.")
@click.option(
    "--served-model-name", "served_model_names", multiple=True, metavar="NAME",
    help="The id that requests say, --model by default. Repeat it for several.",
)  # fmt: skip
@click.option("--tokenizer", metavar="PATH", help="Where the tokenizer is, if not with the model.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), default="auto", help="dummy: random weights.")
@click.option("--max-model-len", type=click.IntRange(min=1), metavar="TOKENS")
@click.option("--gpu-memory-utilization", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--max-num-seqs", type=click.IntRange(min=1), metavar="N", help="Most requests in one step.")
@click.option("--max-num-batched-tokens", type=click.IntRange(min=1), metavar="TOKENS", help="Most tokens in one step.")
@click.option("--max-lora-rank", type=click.IntRange(min=1), default=64, show_default=True)
@click.option(
    "--lora-modules", "lora_modules", multiple=True, metavar="NAME=PATH",
    help="An adapter that requests may name, a folder in PEFT's format. Repeat it for several.",
)  # fmt: skip
@click.option(
    "--lora-dir", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Every adapter in it, by its folder's name.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
def run_batch_command(
    input_file: Path,
    output_file: Path,
    model: str,
    served_model_names: tuple[str, ...],
    tokenizer: str | None,
    dtype: Dtype | Literal["auto"],
    device: Literal["auto", "cpu", "cuda"],
    load_format: Literal["auto", "dummy"],
    max_model_len: int | None,
    gpu_memory_utilization: float,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    max_lora_rank: int,
    lora_modules: tuple[str, ...],
    lora_dir: Path | None,
    seed: int,
) -> None:
    """Answer a file of requests with an engine in this process, without a server.

    Run it again with the same files after an interruption: it goes on where it stopped. Requests that fail have their
    error as their answer.
    """
    engine = EngineConfig(
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        load_format=load_format,
        seed=seed,
        max_model_len=max_model_len,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_queued_requests=UNLIMITED_QUEUE,
        enable_lora=bool(lora_modules) or lora_dir is not None,
        max_lora_rank=max_lora_rank,
    )
    config = ServerConfig(
        engine=engine,
        served_model_names=served_model_names,
        adapters=tuple(_adapter(words) for words in lora_modules),
        lora_dir=lora_dir,
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


def _adapter(words: str) -> AdapterSource:
    name, equals, path = words.partition("=")
    if not (name and equals and path):
        raise click.BadParameter(f"{words!r} is not NAME=PATH", param_hint="--lora-modules")
    return AdapterSource(name, path)
