"""One streamed request to a server with OpenAI's API, and the times of its chunks."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from descant_bench.online.prompts import SampleRequest
from descant_wire.sse import SseDecoder, SseEvent

Backend = Literal["openai", "openai-chat", "vllm"]
ENDPOINTS: Mapping[Backend, str] = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
    "vllm": "/v1/completions",
}
MAX_ERROR_CHARS = 500


@dataclass(slots=True)
class RequestRecord:
    """What came of one request. Times are seconds."""

    model: str
    start: float
    num_prompt_tokens: int
    num_output_tokens: int = 0
    ttft: float = 0.0
    chunk_gaps: list[float] = field(default_factory=list)
    """Between the chunks that bring text (inter-token latency, where each chunk is a token)."""
    latency: float = 0.0
    text: str = ""
    error: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None for a request of one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.num_output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what they have in common."""

    url: str
    backend: Backend
    headers: Mapping[str, str]
    extra_body: Mapping[str, Any]

    def body(self, request: SampleRequest, model: str) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        if self.backend == "openai-chat":
            asked |= {"messages": [{"role": "user", "content": request.prompt}]}
            asked |= {"max_completion_tokens": request.max_tokens}
        else:
            asked |= {"prompt": request.prompt, "max_tokens": request.max_tokens}
        return asked | dict(self.extra_body)


async def send(session: aiohttp.ClientSession, target: Target, request: SampleRequest, model: str) -> RequestRecord:
    """Never raises for what the server or the network does: that is the record's `error`."""
    record = RequestRecord(model, time.perf_counter(), request.num_prompt_tokens)
    try:
        async with session.post(target.url, json=target.body(request, model), headers=target.headers) as reply:
            if reply.status == 200:
                await _read_stream(reply, record)
            else:
                record.error = f"{reply.status}: {(await reply.text())[:MAX_ERROR_CHARS]}"
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        record.error = f"{type(error).__name__}: {error}"
    return record


async def _read_stream(reply: aiohttp.ClientResponse, record: RequestRecord) -> None:
    decoder, is_done, num_chunks = SseDecoder(), False, 0
    latest = record.start
    async for piece in reply.content.iter_any():
        for event in decoder.feed(piece):
            if event.is_done:
                is_done = True
            elif _apply(event, record):
                now = time.perf_counter()
                if num_chunks:
                    record.chunk_gaps.append(now - latest)
                else:
                    record.ttft = now - record.start
                latest, num_chunks = now, num_chunks + 1
    if not num_chunks:  # an answer may be empty: then its end is all there is to time
        latest = time.perf_counter()
        record.ttft = latest - record.start
    record.latency = latest - record.start
    record.num_output_tokens = record.num_output_tokens or num_chunks
    if record.error is None and not is_done:
        record.error = "the stream ended without [DONE]"


def _apply(event: SseEvent, record: RequestRecord) -> bool:
    """Notes what a chunk says; true if it brings text."""
    chunk = json.loads(event.data)
    if "error" in chunk:
        record.error = json.dumps(chunk["error"])[:MAX_ERROR_CHARS]
        return False
    if usage := chunk.get("usage"):
        record.num_prompt_tokens = usage.get("prompt_tokens") or record.num_prompt_tokens
        record.num_output_tokens = usage.get("completion_tokens") or record.num_output_tokens
    text = "".join(_text(choice) for choice in chunk.get("choices") or [])
    record.text += text
    return bool(text)


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "")
