"""Every failure in OpenAI's shape, and none with our internals in it."""

import logging

import pytest
from litestar.testing import TestClient

from descant_engine.async_engine import EngineDraining
from descant_engine.config import EngineConfig
from descant_engine.frontend import InvalidParams, InvalidPrompt, PromptTooLong, UnknownModel
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.serving.engine_client import EngineClosed, EngineDead
from descant_engine.serving.request_stream import RequestFailed
from descant_engine.text.chat_template import UnreadVariable
from descant_server.app import ROUTES, build_app
from descant_server.config import ServerConfig
from descant_server.errors import ENGINE_ERRORS, from_engine
from descant_server.service import Service


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (PromptTooLong(9, 8), 400, "context_length_exceeded", "prompt"),
        (RequestRefused("9 tokens can never fit"), 400, "context_length_exceeded", "prompt"),
        (InvalidPrompt("empty"), 400, "invalid_value", "prompt"),
        (InvalidParams("stop_token_ids: 9 is too large"), 400, "invalid_value", "stop_token_ids"),
        (UnknownModel("x"), 404, "model_not_found", "model"),
        (QueueFull("full"), 429, "rate_limit_exceeded", None),
        (UnreadVariable("chat_template_kwargs.x is not read"), 400, "invalid_value", "chat_template_kwargs"),
        (RequestFailed("its adapter's file is damaged"), 500, "request_failed", None),
        (EngineDead("killed"), 503, "service_unavailable", None),
        (EngineDraining("closing"), 503, "service_unavailable", None),
    ],
)
def test_what_the_engine_raises(error: Exception, status: int, code: str, param: str | None) -> None:
    assert isinstance(error, ENGINE_ERRORS)
    answer = from_engine(error, "prompt")
    assert (answer.status, answer.detail.code, answer.detail.param) == (status, code, param)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineDead("killed"), 500, "engine_died"),
        (EngineClosed("closed"), 503, "service_unavailable"),
        (EngineDraining("closing"), 503, "service_unavailable"),
        (QueueFull("full"), 429, "rate_limit_exceeded"),
    ],
)
def test_what_the_engine_raises_when_it_had_some_of_the_call(error: Exception, status: int, code: str) -> None:
    answer = from_engine(error, "prompt", has_begun=True)
    assert (answer.status, answer.detail.code) == (status, code)


def test_a_bug_is_a_500_without_internals_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(ServerConfig(engine=EngineConfig(model="m")))
    monkeypatch.setattr(service.metrics, "render", lambda: 1 / 0)
    with caplog.at_level(logging.WARNING), TestClient(build_app(service), raise_server_exceptions=False) as client:
        response = client.get("/metrics")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "division" not in response.text
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_every_route_needs_a_key_but_the_probes() -> None:
    service = Service(ServerConfig(engine=EngineConfig(model="m"), api_keys=("key",)))
    public = set()
    with TestClient(build_app(service)) as client:
        for route in ROUTES:
            (method,) = route.http_methods
            for path in route.paths:
                if client.request(method, path.replace("{model:path}", "m")).status_code != 401:
                    public.add(path)
    assert public == {"/health", "/ready", "/version", "/metrics"}
