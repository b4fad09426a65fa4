"""The command `descant serve MODEL`, also `python -m descant_server MODEL`."""

import logging
import sys
from collections.abc import Sequence

import click
import uvloop

from descant_server.adapter_paths import RuntimePaths
from descant_server.config import ServerConfig
from descant_server.engine_options import EngineOptions, takes_engine_options
from descant_server.model_options import ModelOptions, takes_model_options
from descant_server.options import GroupedCommand
from descant_server.server_options import ServerOptions, takes_server_options
from descant_server.serving import StartFailed, StopSignals, serve_forever
from descant_wire.tracing import TracingUnavailable


@click.command(cls=GroupedCommand, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.argument("model")
@takes_engine_options
@takes_model_options
@takes_server_options
def serve(model: str, engine: EngineOptions, names: ModelOptions, server: ServerOptions) -> None:
    """Serve MODEL over HTTP with OpenAI's API: a folder of safetensors, a .gguf file, or a hub id.

    The server listens at once; /ready answers 200 when the model is loaded.
    """
    run(_config(model, engine, names, server))


def _config(model: str, engine: EngineOptions, names: ModelOptions, server: ServerOptions) -> ServerConfig:
    return ServerConfig(
        engine=engine.config(
            model, max_num_queued_requests=server.max_queued_requests, serves_adapters=names.names_adapters
        ),
        host=server.host,
        port=server.port,
        served_model_names=names.served_model_names,
        adapters=names.adapters(model),
        lora_dir=names.lora_dir,
        runtime_lora=RuntimePaths(server.lora_root or names.lora_dir, server.allow_runtime_lora),
        api_keys=server.api_keys,
        internal_key=server.internal_key or None,
        otlp_endpoint=server.otlp_endpoint or None,
        tool_call_parser=server.tool_call_parser,
        reasoning_parser=server.reasoning_parser,
        max_body_bytes=server.max_body_bytes,
        drain_timeout_s=server.drain_timeout,
    )


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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends the process."""
    serve.main(args=None if argv is None else list(argv), prog_name="descant serve")


if __name__ == "__main__":
    main(sys.argv[1:])
