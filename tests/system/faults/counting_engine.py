"""An engine's process without a model: generates at a set pace, tells its load, and keeps a journal of what it did.

`python counting_engine.py PORT JOURNAL`. A line of the journal is [charge, tokens, time.monotonic()] at the end of a
call, however it ended, and [charge, -1, ...] at its beginning; what is written stays when the process is killed.
`POST /pace` with a number of seconds makes it slow.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from aiohttp import web

PROMPT_TOKENS = 11
TOKEN_S = 0.01


class CountingEngine:
    def __init__(self, journal: Path) -> None:
        self._journal = journal.open("a", buffering=1)
        self._token_s = TOKEN_S
        self._tokens: dict[str, int] = {}
        self._ended: dict[str, asyncio.Event] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_get("/internal/load", self._show_load)
        app.router.add_get("/internal/usage/{charge}", self._show_usage)
        app.router.add_post("/pace", self._set_pace)
        app.router.add_get("/ready", self._show_ready)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        fields, charge = json.loads(await request.read()), request.headers["x-descant-charge"]
        self._tokens[charge] = 0
        self._ended[charge] = asyncio.Event()
        self._note(charge, -1)
        try:
            if fields.get("stream"):
                return await self._stream(request, fields["max_tokens"], charge)
            await self._generate(fields["max_tokens"], charge)
            choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": self._usage(charge)})
        finally:
            self._note(charge, self._tokens[charge])
            self._ended.pop(charge).set()

    async def _stream(self, request: web.Request, num_tokens: int, charge: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(num_tokens):
            await self._generate(1, charge)
            await response.write(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')
        usage = json.dumps({"choices": [], "usage": self._usage(charge)})
        await response.write(f"data: {usage}\n\ndata: [DONE]\n\n".encode())
        return response

    async def _generate(self, num_tokens: int, charge: str) -> None:
        for _ in range(num_tokens):
            await asyncio.sleep(self._token_s)
            self._tokens[charge] += 1

    def _note(self, charge: str, num_tokens: int) -> None:
        self._journal.write(json.dumps([charge, num_tokens, time.monotonic()]) + "\n")

    def _usage(self, charge: str) -> dict[str, int]:
        return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": self._tokens[charge]}

    async def _show_usage(self, request: web.Request) -> web.Response:
        charge = request.match_info["charge"]
        if charge not in self._tokens:
            return web.json_response({"error": {"code": "unknown_charge"}}, status=404)
        async with asyncio.timeout(1.5):
            while charge in self._ended:
                await self._ended[charge].wait()
        return web.json_response(self._usage(charge) | {"cached_tokens": 0})

    async def _show_load(self, _: web.Request) -> web.Response:
        load = {"num_running": len(self._ended), "num_waiting": 0, "max_running": 10_000, "num_queued_tokens": 0}
        return web.json_response(load | {"kv_usage": 0.0, "residency": 1, "adapters": {}})

    async def _set_pace(self, request: web.Request) -> web.Response:
        self._token_s = float(await request.text())
        return web.Response()

    async def _show_ready(self, _: web.Request) -> web.Response:
        return web.Response()


if __name__ == "__main__":
    web.run_app(
        CountingEngine(Path(sys.argv[2])).app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        handler_cancellation=True,
        access_log=None,
        print=None,
        backlog=2048,
    )
