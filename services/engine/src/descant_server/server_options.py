"""The options of `descant serve` that are the server's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from descant_engine.text.reasoning import FORMS as REASONING_FORMS
from descant_engine.text.tool_calls.parsers import FORMS as TOOL_CALL_FORMS
from descant_server.options import ADAPTERS, MEMORY, OUTPUT, SERVER, Option, option, takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What was given, or its default."""

    tool_call_parser: str
    reasoning_parser: str
    enable_auto_tool_choice: bool
    lora_root: Path | None
    allow_runtime_lora: bool
    max_queued_requests: int
    host: str
    port: int
    api_keys: tuple[str, ...]
    otlp_endpoint: str | None
    internal_key: str | None
    max_body_bytes: int
    drain_timeout: float


_OPTIONS: Final[tuple[Option, ...]] = (
    option(
        OUTPUT,
        "--tool-call-parser",
        type=click.Choice(["auto", *sorted(TOOL_CALL_FORMS)]),
        default="auto",
        show_default=True,
        help="The form in which the model writes tool calls. auto goes by its chat template.",
    ),
    option(
        OUTPUT,
        "--reasoning-parser",
        type=click.Choice(["auto", *sorted(REASONING_FORMS)]),
        default="auto",
        show_default=True,
        help="The form in which the model thinks. auto goes by its chat template.",
    ),
    option(
        OUTPUT,
        "--enable-auto-tool-choice",
        is_flag=True,
        help="Accepted for vLLM's sake: a model may always choose among the tools of a request.",
    ),
    option(
        ADAPTERS,
        "--lora-root",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Let POST /v1/load_lora_adapter load adapters from inside FOLDER; --lora-dir's by default. Without either,"
        " clients can't change what is served.",
    ),
    option(
        ADAPTERS,
        "--allow-runtime-lora",
        is_flag=True,
        envvar=["DESCANT_ALLOW_RUNTIME_LORA", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"],
        help="Let it load from anywhere on this machine. For development: whoever may call the API can then have"
        " any folder"
        " looked into that this process can read.",
    ),
    option(
        MEMORY,
        "--max-queued-requests",
        type=click.IntRange(min=1),
        default=1024,
        show_default=True,
        metavar="N",
        help="Requests that may wait; further ones get a 429. More hides overload behind longer waits.",
    ),
    option(
        SERVER,
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; 0.0.0.0 is every network, and then --api-key is advisable.",
    ),
    option(
        SERVER,
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="0 takes a free one and prints it.",
    ),
    option(
        SERVER,
        "--api-key",
        "api_keys",
        multiple=True,
        envvar="DESCANT_API_KEY",
        metavar="KEY",
        help="What clients must send as bearer token, or DESCANT_API_KEY in the environment, where other users can't"
        " see it. Repeat it to accept several. Without one, the API is open.",
    ),
    option(
        SERVER,
        "--otlp-traces-endpoint",
        "otlp_endpoint",
        envvar="DESCANT_OTLP_ENDPOINT",
        metavar="URL",
        help="Send traces there, OTLP over HTTP: http://collector:4318/v1/traces. Needs the extra"
        " descant-server[otel].",
    ),
    option(
        SERVER,
        "--internal-key",
        envvar="DESCANT_INTERNAL_KEY",
        metavar="KEY",
        help="The gateway's DESCANT_INTERNAL_KEY, better in the environment. With it the gateway's signed word says"
        " whose a"
        " request is and how urgent, and clients can't; without it tenants share prefix blocks.",
    ),
    option(
        SERVER,
        "--max-body-bytes",
        type=click.IntRange(min=1),
        default=16 << 20,
        show_default=True,
        metavar="BYTES",
        help="Larger requests get a 413. A body is held in memory while it is read.",
    ),
    option(
        SERVER,
        "--drain-timeout",
        type=click.FloatRange(min=0),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="On SIGTERM, how long running requests may go on before they are aborted.",
    ),
)

takes_server_options = takes("server", ServerOptions, _OPTIONS)
