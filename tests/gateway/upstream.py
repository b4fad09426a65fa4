"""A small real backend for the tests: speaks the OpenAI shapes over a socket, slowly or badly where asked to."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from descant_gateway.catalogue.snapshot import Backend


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Upstream:
    """Each field changes what the next requests get."""

    name: str = "engine-0"
    num_tokens: int = 5
    prompt_tokens: int = 7
    cached_tokens: int = 3
    delay_s: float = 0.0
    """Before each token of a stream, before the whole of a reply."""
    first_delay_s: float = 0.0
    gives_usage: bool = True
    dies_after: int | None = None
    """Tokens of a stream after which the connection is cut."""
    status: int = 200
    error_body: bytes = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":"x"}}'
    content_type: str = "application/json"
    ready: bool = True
    line_end: str = "\n"
    api_key: str | None = None

    url: str = ""
    received: list[Received] = field(default_factory=list)
    num_cancelled: int = 0
    num_running: int = 0
    num_tokens_sent: int = 0

    @property
    def backend(self) -> Backend:
        return Backend(name=self.name, base_url=self.url, api_key=self.api_key)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(
            Received(
                request.path,
                {name.lower(): value for name, value in request.headers.items()},
                request.raw_headers,
                body,
            )
        )
        self.num_running += 1
        try:
            if self.status != 200:
                return web.Response(status=self.status, body=self.error_body, content_type=self.content_type)
            fields = json.loads(body)
            await asyncio.sleep(self.first_delay_s)
            if fields.get("stream"):
                return await self._stream(request, fields)
            await asyncio.sleep(self.delay_s)
            return web.Response(body=self.whole(), content_type="application/json", headers={"x-vendor": "kept"})
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    def whole(self) -> bytes:
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "upstream-name",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
            "vendor_field": {"unknown": [1, 2.50, None]},
        }
        if self.gives_usage:
            reply["usage"] = self.usage(self.num_tokens)
        return json.dumps(reply, indent=1).encode()

    def usage(self, num_tokens: int) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self.prompt_tokens + num_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def events(self, *, with_usage: bool) -> list[str]:
        """The data of every event but [DONE]."""
        head = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","vendor":"x",'
        events = [head + '"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}']
        events += [
            head + f'"choices":[{{"index":0,"delta":{{"content":"t{n} \\"usage\\" ü"}},"finish_reason":null}}]}}'
            for n in range(self.num_tokens)
        ]
        events.append(head + '"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
        if with_usage:
            events.append(head + f'"choices":[],"usage":{json.dumps(self.usage(self.num_tokens))}}}')
        return events

    def stream_bytes(self, *, with_usage: bool) -> bytes:
        end = self.line_end * 2
        return "".join(f"data: {data}{end}" for data in [*self.events(with_usage=with_usage), "[DONE]"]).encode()

    async def _stream(self, request: web.Request, fields: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        wants_usage = bool((fields.get("stream_options") or {}).get("include_usage"))
        events = self.events(with_usage=wants_usage and self.gives_usage)
        for number, data in enumerate([*events, "[DONE]"]):
            if self.dies_after is not None and number > self.dies_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            is_token = 0 < number <= self.num_tokens
            await asyncio.sleep(self.delay_s if is_token else 0)
            await response.write(f"data: {data}{self.line_end * 2}".encode())
            self.num_tokens_sent += is_token
        await response.write_eof()
        return response

    async def show_ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)


@asynccontextmanager
async def running(upstream: Upstream) -> AsyncIterator[Upstream]:
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", upstream.answer)
    for path in ("/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/tokenize"):
        app.router.add_post(path, upstream.answer)
    app.router.add_get("/ready", upstream.show_ready)
    # Without cancellation a handler would not learn that its client has left.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        port = runner.addresses[0][1]
        upstream.url = f"http://127.0.0.1:{port}"
        yield upstream
    finally:
        await runner.cleanup()
