"""One trace across a gateway and an engine: each span's parent is the one that sent it."""

from pathlib import Path
from typing import Any

from tests.gateway.gateway_under_test import World, bearer, running_gateway
from tests.trace_collector import Collector, attributes_of, collecting

from descant_cli.up.options import DEMO_MODEL_NAME
from descant_gateway.catalogue.snapshot import Backend
from descant_gateway.config import ProcessConfig

from .conftest import running_engine

CLIENT_SPAN = "b7ad6b7169203331"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}]}),
    (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "stream": True}),
    (COMPLETIONS, {"prompt": "Hi"}),
]
KIND_CLIENT, KIND_SERVER = 3, 2


def trace_id(number: int) -> str:
    return f"{number + 1:032x}"


async def test_each_span_s_parent_is_who_sent_it(system_valkey: str, tmp_path: Path) -> None:
    with collecting() as collector, running_engine(tmp_path, "--otlp-traces-endpoint", collector.url) as engine:
        world = World()
        world.add_model("m", Backend(name="engine-0", base_url=engine.url), upstream_name=DEMO_MODEL_NAME)
        process = ProcessConfig(otlp_endpoint=collector.url)
        async with running_gateway(world, system_valkey, process=process) as gateway:
            key = bearer(world.add_key())
            for number, (path, body) in enumerate(REQUESTS):
                sender = {"traceparent": f"00-{trace_id(number)}-{CLIENT_SPAN}-01"}
                body = {"model": "m", "max_tokens": 2, "ignore_eos": True} | body
                reply = await gateway.client.post(path, json=body, headers=key | sender)
                assert reply.status_code == 200
    assert len(collector.spans) == 2 * len(REQUESTS)
    for number in range(len(REQUESTS)):
        check_trace(collector, number)


def check_trace(collector: Collector, number: int) -> None:
    """The client's span, then the gateway's, then the engine's; no other."""
    spans = [span for span in collector.spans if span.trace_id.hex() == trace_id(number)]
    of_gateway, of_engine = sorted(spans, key=lambda span: span.kind, reverse=True)
    assert (of_gateway.kind, of_engine.kind) == (KIND_CLIENT, KIND_SERVER)
    assert of_gateway.parent_span_id.hex() == CLIENT_SPAN
    assert of_engine.parent_span_id == of_gateway.span_id
    assert of_engine.span_id not in (of_gateway.span_id, bytes.fromhex(CLIENT_SPAN))
    assert of_gateway.start_time_unix_nano <= of_engine.start_time_unix_nano
    assert attributes_of(of_gateway)["gen_ai.usage.output_tokens"] == 2
    assert attributes_of(of_engine)["gen_ai.usage.output_tokens"] == 2
