"""What is secret shows nowhere: a whole gateway process with canaries in all it is given, and all it says searched."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tests.gateway.gateway_process import ADMIN, environment, free_port, gateway_process, wait_until_ready
from tests.gateway.gateway_under_test import bearer
from tests.gateway.upstream import Upstream, running
from tests.trace_collector import attributes_of, collecting

CHAT = "/v1/chat/completions"
PROMPT, HEADER, PROVIDER, INTERNAL = "CANARY-PROMPT", "CANARY-HEADER", "CANARY-PROVIDER-KEY", "CANARY-INTERNAL-KEY"
ERROR = 2
"""OpenTelemetry's status."""
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with running(Upstream(api_key=PROVIDER)) as upstream:
        yield upstream


async def test_no_canary_shows_in_logs_errors_metrics_or_traces(
    upstream: Upstream, engine: AsyncEngine, postgres_url: str, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    said: list[bytes] = []
    with collecting() as collector:
        env = environment(postgres_url, valkey_url, tmp_path) | {
            "DESCANT_OTLP_ENDPOINT": collector.url,
            "DESCANT_INTERNAL_KEY": INTERNAL,
            "DESCANT_LOG_LEVEL": "debug",
        }
        with gateway_process(env, "--port", str(port)) as process:
            await wait_until_ready(url, process)
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:

                async def ask(path: str, headers: dict[str, str], **fields: object) -> int:
                    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]} | fields
                    reply = await client.post(path, json=body, headers={"x-secret": HEADER} | headers)
                    said.append(reply.content + str(reply.headers).encode())
                    return reply.status_code

                backend = {"name": "engine-0", "base_url": upstream.url, "api_key": PROVIDER}
                said.append((await client.put("/admin/v1/backends", json=backend, headers=ADMIN)).content)
                model = {"name": "m", "backends": ["engine-0"]}
                (await client.put("/admin/v1/models", json=model, headers=ADMIN)).raise_for_status()
                team = (await client.post("/admin/v1/teams", json={"name": "t"}, headers=ADMIN)).json()["id"]
                made = await client.post("/admin/v1/keys", json={"name": "k", "team_id": team}, headers=ADMIN)
                key = made.json()["api_key"]
                await asyncio.sleep(1.0)
                sender = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
                assert await ask(CHAT, bearer(key) | sender) == 200
                assert await ask(CHAT, bearer(key), stream=True) == 200
                # All the ways to fail: the key, the model, the fields, the body, the backend, in the middle too.
                assert await ask(CHAT, bearer(key[:-4] + "AAAA")) == 401
                assert await ask(CHAT, bearer(key), model="unknown") == 404
                assert await ask(CHAT, bearer(key), max_tokens=PROMPT) == 400
                reply = await client.post(CHAT, content=f'{{"model": "m", {PROMPT}', headers=bearer(key))
                assert (reply.status_code, PROMPT in reply.text) == (400, False)
                upstream.dies_after = 2
                assert await ask(CHAT, bearer(key), stream=True) == 200
                upstream.status, upstream.error_body = 500, f'{{"error": "{PROVIDER} {PROMPT}"}}'.encode()
                assert await ask(CHAT, bearer(key)) == 502
                said.append((await client.get("/metrics")).content)
                said.append((await client.get("/admin/v1/audit", headers=ADMIN)).content)
                said.append((await client.get("/admin/v1/backends", headers=ADMIN)).content)
            process.send_signal(signal.SIGTERM)
            out, err = await asyncio.to_thread(process.communicate, timeout=20)
            assert process.returncode == 0, err
        spans = collector.spans
        said += [out, err, *collector.bodies]

    everything = b"\n".join(said)
    secrets = (PROMPT, HEADER, PROVIDER, INTERNAL, key, key[20:], env["DESCANT_KEY_PEPPER"], env["DESCANT_ADMIN_KEY"])
    for secret in secrets:
        assert secret.encode() not in everything, f"{secret} in {around(everything, secret.encode())!r}"
    assert b'"event":"request"' in out
    assert b"descant_gateway_requests_total" in everything

    # And the traces say what they should.
    first = next(span for span in spans if span.trace_id.hex() == TRACE_ID)
    attributes = attributes_of(first)
    assert first.name == "chat m"
    assert first.parent_span_id.hex() == "b7ad6b7169203331"
    assert upstream.received[0].headers["traceparent"] == f"00-{TRACE_ID}-{first.span_id.hex()}-01"
    assert attributes["gen_ai.operation.name"] == "chat"
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (7, 5)
    assert attributes["http.response.status_code"] == 200
    # One span for each admitted request, in their order: two answered, a stream that broke, a backend that failed.
    in_order = sorted(spans, key=lambda span: span.start_time_unix_nano)
    assert [(span.name, attributes_of(span).get("error.type")) for span in in_order] == [
        ("chat m", None),
        ("chat m", None),
        ("chat m", "upstream_failed"),
        ("chat m", "ApiError"),
    ]
    assert [span.status.code for span in in_order] == [0, 0, ERROR, ERROR]
    sent = [request.headers["traceparent"].rpartition("-")[0] for request in upstream.received]
    assert sent == [f"00-{span.trace_id.hex()}-{span.span_id.hex()}" for span in in_order]
    assert [span.parent_span_id.hex() for span in in_order] == ["b7ad6b7169203331", "", "", ""]


def around(text: bytes, secret: bytes) -> bytes:
    at = text.index(secret)
    return text[max(0, at - 200) : at + 200]


def test_a_database_s_password_shows_in_no_error(valkey_url: str, tmp_path: Path) -> None:
    env = environment("postgresql://user:CANARY-DB@127.0.0.1:1/x", valkey_url, tmp_path)
    with gateway_process(env, "--port", "0") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"CANARY-DB" not in out + err
