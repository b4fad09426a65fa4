"""The command `descant serve MODEL`, also `python -m descant_server MODEL`."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec
import uvloop

from descant_engine.config import Dtype, EngineConfig, Runner, StructuredOutputBackend
from descant_engine.pooling import PoolingType
from descant_engine.text.reasoning import FORMS as REASONING_FORMS
from descant_engine.text.tool_calls.parsers import FORMS as TOOL_CALL_FORMS
from descant_server.adapter_paths import RuntimePaths
from descant_server.config import AdapterSource, ServerConfig
from descant_server.options import GroupedCommand, GroupedOption
from descant_server.serving import StartFailed, StopSignals, serve_forever
from descant_wire.tracing import TracingUnavailable

Command = TypeVar("Command", bound=Callable[..., None])

MODEL = "Model"
MEMORY = "Memory and batching"
OUTPUT = "Structured output, tools, reasoning"
ADAPTERS = "Adapters"
SERVER = "Server"

RUNNER_OF_TASK: dict[str, Runner] = {
    "auto": "auto",
    "generate": "generate",
    **dict.fromkeys(("embed", "embedding", "score"), "pooling"),
}


def _option(group: str, *names: str, **attributes: Any) -> Callable[[Command], Command]:
    """`attributes` are click's."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


@click.command(cls=GroupedCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("model")
@_option(
    MODEL,
    "--served-model-name",
    "served_model_names",
    multiple=True,
    metavar="NAME",
    help="The id that requests say, MODEL by default. Repeat it for several; answers show the first.",
)
@_option(MODEL, "--tokenizer", metavar="PATH", help="Where the tokenizer is, if not with the model.")
@_option(
    MODEL,
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of weights, activations and KV. auto is the model's own on a GPU; float32 costs twice"
    " the memory of the others.",
)
@_option(
    MODEL,
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU if there is one.",
)
@_option(
    MODEL,
    "--load-format",
    type=click.Choice(["auto", "dummy"]),
    default="auto",
    show_default=True,
    help="dummy makes random weights of the model's shape: for benchmarks, no download, nonsense for answers.",
)
@_option(
    MODEL,
    "--max-model-len",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Longest prompt and completion together; the model's own limit by default. Longer allows bigger requests,"
    " each of which may take more of the pool.",
)
@_option(
    MODEL,
    "--runner",
    type=click.Choice(["auto", "generate", "pooling"]),
    default="auto",
    show_default=True,
    help="What the model is to do. auto: encoders make vectors or scores; decoders generate and, where their folder or"
    " --pooling-type says how, make vectors too. pooling: nothing but vectors.",
)
@_option(
    MODEL,
    "--task",
    type=click.Choice(sorted(RUNNER_OF_TASK)),
    help="vLLM's older name for --runner.",
)
@_option(
    MODEL,
    "--pooling-type",
    type=click.Choice(list(PoolingType), case_sensitive=False),
    help="Which hidden states make a text's vector, instead of what the model's folder says.",
)
@_option(
    MODEL,
    "--hf-overrides",
    metavar="JSON",
    default="{}",
    help='In place of the model\'s config: {"is_matryoshka": true} or {"matryoshka_dimensions": [64, 128]} let'
    " requests cut vectors (`dimensions`). Nothing else can be overridden.",
)
@_option(MODEL, "--seed", type=int, default=0, show_default=True, help="Of dummy weights and of requests without one.")
@_option(
    MEMORY,
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the GPU for weights and block pool. More means more requests at once, and"
    " less room for other programs.",
)
@_option(
    MEMORY,
    "--block-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="TOKENS",
    help="Tokens per block of KV. Larger blocks share fewer prefixes and waste more at the end of a request.",
)
@_option(
    MEMORY,
    "--max-num-seqs",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most requests in one step. More raises throughput and the time between tokens.",
)
@_option(
    MEMORY,
    "--max-num-batched-tokens",
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Most tokens in one step. More shortens the wait for the first token, and makes long prompts interrupt"
    " running answers for longer.",
)
@_option(
    MEMORY,
    "--enable-prefix-caching/--no-enable-prefix-caching",
    default=True,
    show_default=True,
    help="Reuse the KV of prompt beginnings seen before. Costs almost nothing.",
)
@_option(
    MEMORY,
    "--max-queued-requests",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Requests that may wait; further ones get a 429. More hides overload behind longer waits.",
)
@_option(
    OUTPUT,
    "--deterministic",
    is_flag=True,
    help="The same bits for a request whatever else is in the batch. CUDA only; costs speed, at long contexts most.",
)
@_option(
    OUTPUT,
    "--structured-output-backend",
    "--guided-decoding-backend",
    "structured_output_backend",
    type=click.Choice(["auto", "xgrammar", "llguidance"]),
    default="auto",
    show_default=True,
    help="What keeps outputs to JSON schemas and grammars. auto is xgrammar where it keeps to them exactly and in"
    " time, llguidance otherwise; either alone refuses more.",
)
@_option(
    OUTPUT,
    "--tool-call-parser",
    type=click.Choice(["auto", *sorted(TOOL_CALL_FORMS)]),
    default="auto",
    show_default=True,
    help="The form in which the model writes tool calls. auto goes by its chat template.",
)
@_option(
    OUTPUT,
    "--reasoning-parser",
    type=click.Choice(["auto", *sorted(REASONING_FORMS)]),
    default="auto",
    show_default=True,
    help="The form in which the model thinks. auto goes by its chat template.",
)
@_option(
    OUTPUT,
    "--enable-auto-tool-choice",
    is_flag=True,
    help="Accepted for vLLM's sake: a model may always choose among the tools of a request.",
)
@_option(ADAPTERS, "--enable-lora", is_flag=True, help="Serve LoRA adapters. Costs nothing while no request uses one.")
@_option(
    ADAPTERS,
    "--max-lora-rank",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="RANK",
    help="Adapters of a higher rank are refused. Memory is taken by each adapter's own rank, not by this.",
)
@_option(
    ADAPTERS,
    "--max-loras",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most adapters on the device at once; by default as many as fit. Nothing is reserved for them, so a bound only"
    " makes room for KV.",
)
@_option(
    ADAPTERS,
    "--lora-modules",
    "lora_modules",
    multiple=True,
    metavar="NAME=PATH ...",
    help="Adapters to serve, each a folder in PEFT's format. Implies --enable-lora. One that can't be served ends the"
    " start with the reason; weights are read when a request needs them.",
)
@_option(
    ADAPTERS,
    "--lora-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Serve every adapter in FOLDER, a PEFT folder each, by its folder's name. Implies --enable-lora. None is"
    " looked at before a request names it, so a thousand cost no time at the start.",
)
@_option(
    ADAPTERS,
    "--lora-root",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Let POST /v1/load_lora_adapter load adapters from inside FOLDER; --lora-dir's by default. Without either,"
    " clients can't change what is served.",
)
@_option(
    ADAPTERS,
    "--allow-runtime-lora",
    is_flag=True,
    envvar=["DESCANT_ALLOW_RUNTIME_LORA", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"],
    help="Let it load from anywhere on this machine. For development: whoever may call the API can then have any folder"
    " looked into that this process can read.",
)
@_option(
    SERVER,
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is every network, and then --api-key is advisable.",
)
@_option(
    SERVER,
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="0 takes a free one and prints it.",
)
@_option(
    SERVER,
    "--api-key",
    "api_keys",
    multiple=True,
    envvar="DESCANT_API_KEY",
    metavar="KEY",
    help="What clients must send as bearer token, or DESCANT_API_KEY in the environment, where other users can't"
    " see it. Repeat it to accept several. Without one, the API is open.",
)
@_option(
    SERVER,
    "--otlp-traces-endpoint",
    "otlp_endpoint",
    envvar="DESCANT_OTLP_ENDPOINT",
    metavar="URL",
    help="Send traces there, OTLP over HTTP: http://collector:4318/v1/traces. Needs the extra descant-server[otel].",
)
@_option(
    SERVER,
    "--internal-key",
    envvar="DESCANT_INTERNAL_KEY",
    metavar="KEY",
    help="The gateway's DESCANT_INTERNAL_KEY, better in the environment. With it the gateway's signed word says whose a"
    " request is and how urgent, and clients can't; without it tenants share prefix blocks.",
)
@_option(
    SERVER,
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=16 << 20,
    show_default=True,
    metavar="BYTES",
    help="Larger requests get a 413. A body is held in memory while it is read.",
)
@_option(
    SERVER,
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="On SIGTERM, how long running requests may go on before they are aborted.",
)
def serve(
    model: str,
    served_model_names: tuple[str, ...],
    tokenizer: str | None,
    dtype: Dtype | Literal["auto"],
    device: Literal["auto", "cpu", "cuda"],
    load_format: Literal["auto", "dummy"],
    max_model_len: int | None,
    runner: Runner,
    task: str | None,
    pooling_type: str | None,
    hf_overrides: str,
    seed: int,
    gpu_memory_utilization: float,
    block_size: int,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    enable_prefix_caching: bool,
    max_queued_requests: int,
    deterministic: bool,
    structured_output_backend: StructuredOutputBackend,
    tool_call_parser: str,
    reasoning_parser: str,
    enable_auto_tool_choice: bool,
    enable_lora: bool,
    max_lora_rank: int,
    max_loras: int | None,
    lora_modules: tuple[str, ...],
    lora_dir: Path | None,
    lora_root: Path | None,
    allow_runtime_lora: bool,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    internal_key: str | None,
    otlp_endpoint: str | None,
    max_body_bytes: int,
    drain_timeout: float,
) -> None:
    """Serve MODEL over HTTP with OpenAI's API: a folder of safetensors, a .gguf file, or a hub id.

    The server listens at once; /ready answers 200 when the model is loaded.
    """
    engine = EngineConfig(
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        load_format=load_format,
        seed=seed,
        max_model_len=max_model_len,
        block_size=block_size,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_queued_requests=max_queued_requests,
        enable_prefix_caching=enable_prefix_caching,
        deterministic=deterministic,
        structured_output_backend=structured_output_backend,
        enable_lora=enable_lora or bool(lora_modules) or lora_dir is not None,
        max_lora_rank=max_lora_rank,
        max_loras=max_loras,
        runner=runner if task is None else RUNNER_OF_TASK[task],
        pooling_type=None if pooling_type is None else PoolingType(pooling_type),
        matryoshka_dimensions=_matryoshka_dimensions(hf_overrides),
    )
    config = ServerConfig(
        engine=engine,
        host=host,
        port=port,
        served_model_names=served_model_names,
        adapters=_adapter_sources(lora_modules, served_model_names or (model,)),
        lora_dir=lora_dir,
        runtime_lora=RuntimePaths(lora_root or lora_dir, allow_runtime_lora),
        api_keys=api_keys,
        internal_key=internal_key or None,
        otlp_endpoint=otlp_endpoint or None,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
        max_body_bytes=max_body_bytes,
        drain_timeout_s=drain_timeout,
    )
    run(config)


def run(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        click.ClickException: it could not start.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        uvloop.run(_serve(config))
    except (StartFailed, TracingUnavailable) as error:
        raise click.ClickException(str(error)) from error


async def _serve(config: ServerConfig) -> None:
    stop = StopSignals()
    stop.listen()
    await serve_forever(config, stop)


class _Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] | None = None


def _matryoshka_dimensions(hf_overrides: str) -> tuple[int, ...] | None:
    try:
        given = msgspec.json.decode(hf_overrides, type=_Overrides)
    except msgspec.MsgspecError as error:
        raise click.BadParameter(str(error), param_hint="--hf-overrides") from None
    return () if given.is_matryoshka and given.matryoshka_dimensions is None else given.matryoshka_dimensions


def _adapter_sources(lora_modules: Sequence[str], base_names: Sequence[str]) -> tuple[AdapterSource, ...]:
    sources: dict[str, AdapterSource] = {}
    for module in lora_modules:
        name, equals, path = module.partition("=")
        if not (name and equals and path):
            raise click.BadParameter(f"{module!r} is not NAME=PATH", param_hint="--lora-modules")
        if name in sources or name in base_names:
            raise click.BadParameter(f"the name {name!r} is given twice", param_hint="--lora-modules")
        sources[name] = AdapterSource(name, path)
    return tuple(sources.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process."""
    serve.main(args=None if argv is None else list(argv), prog_name="descant serve")


if __name__ == "__main__":
    main(sys.argv[1:])
