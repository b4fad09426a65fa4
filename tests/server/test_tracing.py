"""An engine's part of a trace, and that no canary shows in what an engine says."""

from collections.abc import Iterator

import httpx
import pytest
from tests.trace_collector import Collector, attributes_of, collecting

PROMPT, KEY, INTERNAL, HEADER = "CANARY-PROMPT", "CANARY-API-KEY", "CANARY-INTERNAL-KEY", "CANARY-HEADER"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_an_engine_continues_the_trace_and_tells_no_secret(start_server, collector):
    arguments = ("--otlp-traces-endpoint", collector.url, "--api-key", KEY, "--internal-key", INTERNAL)
    server = start_server(*arguments).wait_until_ready()
    sender = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01", "x-secret": HEADER}
    said: list[str] = []
    with httpx.Client(base_url=server.url, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "ignore_eos": True}
        for fields, status in (({}, 200), ({"model": "no"}, 404), ({"max_tokens": PROMPT}, 400), ({"n": -1}, 400)):
            reply = http.post("/v1/chat/completions", json=body | fields, headers=sender)
            assert reply.status_code == status
            said.append(reply.text if status != 200 else "")
        said.append(http.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer CANARY-BAD"}).text)
        said.append(http.get("/metrics").text)
    assert server.stop() == 0
    text = "\n".join([*said, *server.lines]).encode() + b"".join(collector.bodies)
    for secret in (PROMPT, KEY, INTERNAL, HEADER, "CANARY-BAD"):
        assert secret.encode() not in text
    (span,) = collector.spans
    values = attributes_of(span)
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("chat tiny", TRACE_ID, "b7ad6b7169203331")
    assert values["gen_ai.usage.output_tokens"] == 3
    assert values["gen_ai.usage.input_tokens"] > 0


def test_vectors_and_scores_have_spans_too(start_server, collector):
    server = start_server("--otlp-traces-endpoint", collector.url, "--pooling-type", "LAST").wait_until_ready()
    sender = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    with httpx.Client(base_url=server.url, timeout=60, headers=sender) as http:
        for path, body in (
            ("/v1/embeddings", {"input": ["Hi", "Hello there"]}),
            ("/v1/rerank", {"query": "Hi", "documents": ["Hello there"]}),
            ("/v1/score", {"text_1": "Hi", "text_2": "Hello there"}),
        ):
            assert http.post(path, json={"model": "tiny"} | body).status_code == 200, path
        assert http.post("/v1/embeddings", json={"model": "tiny", "input": "Hi " * 5000}).status_code == 400
    assert server.stop() == 0
    spans = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    names = ["embeddings tiny", "rerank tiny", "score tiny", "embeddings tiny"]
    assert [span.name for span in spans] == names
    for span in spans:
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, "b7ad6b7169203331")
    counts = [attributes_of(span) for span in spans]
    assert [count["gen_ai.usage.input_tokens"] > 0 for count in counts] == [True, True, True, False]
    assert [span.status.code for span in spans] == [0, 0, 0, 2]
