"""A backend whose next reply is written down once, and comes whole or as chunks, as the request asks."""

import json
from dataclasses import dataclass, field

from .upstream import Upstream


@dataclass
class Script:
    content: str | None = "Hello there"
    reasoning: str | None = None
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """id, name, arguments"""
    finish_reason: str = "stop"
    stop_reason: str | None = None
    prompt_tokens: int = 11
    cached_tokens: int = 4
    completion_tokens: int = 6
    reasoning_tokens: int = 0

    @property
    def usage(self) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def reply(self) -> dict:
        message: dict = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in self.calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason, "stop_reason": self.stop_reason}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "upstream"}
        return head | {"choices": [choice], "usage": self.usage}

    def deltas(self) -> list[dict]:
        deltas: list[dict] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": part} for part in _parts(self.reasoning)]
        deltas += [{"content": part} for part in _parts(self.content)]
        for index, (id, name, arguments) in enumerate(self.calls):
            function = {"name": name, "arguments": ""}
            deltas.append({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            for part in _parts(arguments):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        return deltas


def _parts(text: str | None) -> list[str]:
    return [text[start : start + 5] for start in range(0, len(text), 5)] if text else []


@dataclass
class ScriptedUpstream(Upstream):
    script: Script = field(default_factory=Script)

    def whole(self) -> bytes:
        return json.dumps(self.script.reply()).encode()

    def events(self, *, with_usage: bool) -> list[str]:
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        deltas = self.script.deltas()
        self.num_tokens = len(deltas)
        choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        ending = {"finish_reason": self.script.finish_reason, "stop_reason": self.script.stop_reason}
        choices.append({"index": 0, "delta": {}} | ending)
        events = [json.dumps(head | {"choices": [choice]}) for choice in choices]
        return [*events, json.dumps(head | {"choices": [], "usage": self.script.usage})] if with_usage else events
