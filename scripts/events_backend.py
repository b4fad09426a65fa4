"""A backend that streams: one chunk after the other with a pause, each in a write of its own, as engines do.

python scripts/events_backend.py PORT
"""

import asyncio
import contextlib
import json
import re
import sys

PAUSE_S = 0.005
HEAD = '"id":"chatcmpl-1234567890abcdef","object":"chat.completion.chunk","created":1700000000,"model":"s"'
CHUNK = f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"content":" token"}},"finish_reason":null}}]}}\n\n'.encode()
USAGE = '"usage":{"prompt_tokens":12,"completion_tokens":50,"total_tokens":62}'
LAST = (
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}\n\n'
    f'data: {{{HEAD},"choices":[],{USAGE}}}\n\ndata: [DONE]\n\n'
).encode()


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_events(port: int) -> None:
    """A stream of `max_tokens` chunks for any POST, each written by itself."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1]) if length else 0)
                writer.write(answer)
                due = loop.time()
                for _ in range(json.loads(body)["max_tokens"]):
                    writer.write(framed(CHUNK))
                    due += PAUSE_S
                    await asyncio.sleep(due - loop.time())
                writer.write(framed(LAST) + b"0\r\n\r\n")

    async with await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve_events(int(sys.argv[1])))
