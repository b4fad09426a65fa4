"""The process: what it says while it starts, when it can't, and how it ends; keys and limits."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "ignore_eos": True}


def test_from_start_to_drain(start_server):
    """One server, in the order of its life."""
    server = start_server(
        "--api-key",
        "one",
        "--api-key",
        "two",
        "--max-num-seqs",
        "1",
        "--max-queued-requests",
        "1",
        "--max-body-bytes",
        "2000",
        "--drain-timeout",
        "60",
    )
    assert httpx.get(f"{server.url}/health").status_code == 200
    loading = httpx.get(f"{server.url}/ready")
    assert (loading.status_code, loading.json()["error"]["code"]) == (503, "loading")
    assert int(loading.headers["retry-after"]) >= 1
    server.wait_until_ready()
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer two"}, timeout=60) as http:
        check_keys(server.url, http)
        assert http.post("/v1/completions", json=LONG | {"prompt": "x" * 3000}).status_code == 413
        load = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/"})
        assert (load.status_code, load.json()["error"]["code"]) == (400, "lora_disabled")
        check_full_queue(server, http)
        check_drain(server, http)
    assert any("stopping" in line for line in server.lines)


def check_keys(url: str, http: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "two"}, {"authorization": "Bearer twoo"}):
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/v1/completions"),
            ("POST", "/tokenize"),
            ("POST", "/v1/load_lora_adapter"),
            ("GET", "/internal/load"),
            ("GET", "/internal/usage/x"),
        ):
            response = httpx.request(method, url + path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    for path in ("/health", "/ready", "/version", "/metrics"):
        assert httpx.get(url + path).status_code == 200
    assert http.get("/v1/models", headers={"authorization": "bearer one"}).status_code == 200
    assert http.get("/internal/load").status_code == 200
    assert http.get("/internal/usage/x").status_code == 404


def check_full_queue(server, http: httpx.Client) -> None:
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as running:
        assert running.status_code == 200
        waiting = threading.Thread(
            target=http.post, args=("/v1/completions",), kwargs={"json": LONG | {"max_tokens": 1}}
        )
        waiting.start()
        server.wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        refused = http.post("/v1/completions", json=LONG | {"stream": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
    waiting.join(20)
    assert server.metric("vllm:admission_rejections_total") == 1
    server.wait_until(server.is_idle)


def check_drain(server, http: httpx.Client) -> None:
    """What runs ends in full, what comes is refused, and the process ends with 0."""
    with http.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 1500, "stream": True}) as running:
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = http.post("/v1/completions", json=LONG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/health").status_code == 200
        text = running.read().decode()
    assert '"finish_reason":"length"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert server.process.wait(20) == 0


def test_what_outlives_the_drain_timeout_is_ended_and_told_so(start_server):
    server = start_server("--drain-timeout", "0.2").wait_until_ready()
    with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as running:
        server.process.send_signal(signal.SIGTERM)
        text = running.read().decode()
    assert '"error"' in text
    assert text.endswith("data: [DONE]\n\n")
    assert server.process.wait(20) == 0


def test_a_dead_engine_is_told_from_a_busy_one(start_server):
    server = start_server().wait_until_ready()
    with ThreadPoolExecutor(1) as threads:
        whole = threads.submit(httpx.post, f"{server.url}/v1/completions", json=LONG, timeout=60)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as running:
            server.wait_until(lambda: server.metric("vllm:num_requests_running") == 2)
            (engine,) = children(server.process.pid)
            engine.kill()
            text = running.read().decode()
        answer = whole.result()
    assert '"engine_died"' in text
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_died")
    server.wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503)
    answer = httpx.post(f"{server.url}/v1/completions", json=LONG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
    assert server.stop() == 0


def children(pid: int):
    return [child for child in psutil.Process(pid).children() if "engine_process" in " ".join(child.cmdline())]


def test_it_can_be_stopped_while_it_loads(start_server):
    server = start_server()
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.stop() == 0


def test_a_taken_port_is_one_clear_line(start_server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start_server("--port", str(port))
        assert server.process.wait(60) == 1
    server.wait_until(lambda: any(f"port {port}" in line for line in server.lines))
    assert not any("Traceback" in line for line in server.lines)


def test_a_wish_that_cannot_be_met_is_one_clear_line(start_server):
    server = start_server("--max-model-len", "99999999")
    assert server.process.wait(60) == 1
    server.wait_until(lambda: any("max_model_len=99999999" in line for line in server.lines))
    assert not any("Traceback" in line for line in server.lines)


def test_an_adapter_that_is_not_there_is_one_clear_line(start_server):
    server = start_server("--lora-modules", "broken=/no/such/folder")
    assert server.process.wait(60) == 1
    server.wait_until(lambda: any(line.startswith("Error: cannot serve") for line in server.lines))
    assert not any("Traceback" in line for line in server.lines)


def test_a_model_that_is_not_there_is_one_clear_line(start_server):
    server = start_server(model="/no/such/model")
    assert server.process.wait(60) == 1
    server.wait_until(lambda: any("/no/such/model" in line for line in server.lines if line.startswith("Error")))
