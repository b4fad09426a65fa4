"""Tool calls that must come, on a real model at temperature 1, through the server and OpenAI's client: do all of them
parse, and keep to their tool's schema?

python scripts/tool_calls.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

Half of the calls are streamed; half are required (any tool, a fourth of these perhaps several), half of a named tool.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator
from openai import AsyncOpenAI

from descant_bench.environment import describe_environment

CONCURRENCY = 8
MAX_TOKENS = 3072
QUESTIONS = (
    "What is the weather in Bergen tomorrow?",
    "Write to Ana that the parcel has come.",
    "Which customers have open orders?",
    "Order three boxes of AAA-1234.",
    "Remind me on Friday to call the bank.",
    "Turn the lights in the kitchen to warm white.",
)


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = (
    _function(
        "get_weather",
        "The weather of a place.",
        {
            "city": {"type": "string", "maxLength": 24},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        ["city", "unit"],
    ),
    _function(
        "send_message",
        "Sends a message to people.",
        {
            "to": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[a-z]{2,12}$"},
                "minItems": 1,
                "maxItems": 3,
            },
            "text": {"type": "string", "maxLength": 60},
            "is_urgent": {"type": "boolean"},
        },
        ["to", "text", "is_urgent"],
    ),
    _function(
        "query",
        "Reads rows of a table.",
        {
            "table": {"enum": ["orders", "customers", "stock"]},
            "where": {
                "type": "array",
                "maxItems": 2,
                "items": {
                    "type": "object",
                    "properties": {
                        "column": {"type": "string", "pattern": "^[a-z_]{1,16}$"},
                        "operator": {"enum": ["=", "<", ">", "like"]},
                        "value": {
                            "anyOf": [
                                {"type": "integer", "minimum": 0, "maximum": 9999},
                                {"type": "string", "maxLength": 12},
                            ]
                        },
                    },
                    "required": ["column", "operator", "value"],
                    "additionalProperties": False,
                },
            },
            "limit": {"type": ["integer", "null"], "minimum": 1, "maximum": 1000},
        },
        ["table", "where"],
    ),
    _function(
        "order",
        "Orders goods.",
        {
            "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        ["sku", "quantity"],
    ),
    _function(
        "remind",
        "Reminds the user on a day.",
        {"on": {"type": "string", "format": "date"}, "about": {"type": "string", "minLength": 1, "maxLength": 40}},
        ["on", "about"],
    ),
    _function(
        "set_light",
        "Sets the lights of a room.",
        {"room": {"enum": ["kitchen", "hall", "office"]}, "colour": {"type": "string", "pattern": "^#[0-9a-f]{6}$"}},
        ["room", "colour"],
    ),
)
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


class Case(NamedTuple):
    number: int

    @property
    def is_streamed(self) -> bool:
        return self.number % 2 == 0

    @property
    def named(self) -> str | None:
        return None if self.number // 2 % 2 else TOOLS[self.number // 4 % len(TOOLS)]["function"]["name"]

    @property
    def options(self) -> dict[str, Any]:
        name = self.named
        return {
            "messages": [{"role": "user", "content": QUESTIONS[self.number % len(QUESTIONS)]}],
            "tools": TOOLS,
            "tool_choice": "required" if name is None else {"type": "function", "function": {"name": name}},
            "parallel_tool_calls": self.number % 16 in (2, 3),
            "temperature": 1.0,
            "seed": self.number,
            "max_tokens": MAX_TOKENS,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: str
    """valid, or what was wrong"""
    num_calls: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--output", type=Path, metavar="OUT.json")
    args = parser.parse_args()
    cases = [Case(number) for number in range(args.calls)]
    started = time.monotonic()
    with serving(args.model) as url:
        outcomes = asyncio.run(ask_all(url, cases))
    report = {
        "environment": asdict(describe_environment("cpu")),
        "model": Path(args.model).name,
        "seconds": round(time.monotonic() - started, 1),
        "outputs": dict(Counter(outcome.kind for outcome in outcomes)),
        "of_which": {
            name: dict(Counter(outcome.kind for case, outcome in zip(cases, outcomes, strict=True) if belongs(case)))
            for name, belongs in GROUPS.items()
        },
        "calls_in_them": sum(outcome.num_calls for outcome in outcomes),
    }
    print(json.dumps(report, indent=1))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")


GROUPS: dict[str, Callable[[Case], bool]] = {
    "streamed": lambda case: case.is_streamed,
    "whole": lambda case: not case.is_streamed,
    "named": lambda case: case.named is not None,
    "required": lambda case: case.named is None,
}


@contextmanager
def serving(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "descant_server", model, "--port", "0", "--served-model-name", "m"]
    with subprocess.Popen([*command, "--max-model-len", "4096"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = next(line for line in process.stdout if " ready: " in line)
            yield re.findall(r"http://\S+", ready)[0]
        finally:
            process.terminate()


async def ask_all(url: str, cases: list[Case]) -> list[Outcome]:
    places = asyncio.Semaphore(CONCURRENCY)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=600) as client:

        async def ask(case: Case) -> Outcome:
            async with places:
                outcome = await (streamed if case.is_streamed else whole)(client, case)
            print(case.number, case.named or "required", outcome, file=sys.stderr, flush=True)
            return outcome

        return await asyncio.gather(*(ask(case) for case in cases))


async def whole(client: AsyncOpenAI, case: Case) -> Outcome:
    (choice,) = (await client.chat.completions.create(model="m", **case.options)).choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return judged(case, choice.finish_reason, calls, choice.message.content)


async def streamed(client: AsyncOpenAI, case: Case) -> Outcome:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, finish_reason = "", None
    async for chunk in await client.chat.completions.create(model="m", stream=True, **case.options):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish_reason = choice.finish_reason or finish_reason
            for call in choice.delta.tool_calls or []:
                if call.function.name is not None:
                    names[call.index] = call.function.name
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    return judged(case, finish_reason, [(names[place], arguments[place]) for place in sorted(names)], content)


def judged(case: Case, finish_reason: str | None, calls: list[tuple[str, str]], content: str | None) -> Outcome:
    if finish_reason == "length":
        return Outcome("cut", len(calls))
    if finish_reason != "tool_calls" or not calls or content:
        return Outcome(f"no call: {finish_reason}", len(calls))
    if case.named is not None and [name for name, _ in calls] != [case.named]:
        return Outcome("another tool", len(calls))
    return Outcome("valid" if all(fits(*call) for call in calls) else "invalid", len(calls))


def fits(name: str, arguments: str) -> bool:
    try:
        value = json.loads(arguments)
    except ValueError:
        return False
    checker = Draft202012Validator.FORMAT_CHECKER
    return Draft202012Validator(SCHEMAS[name], format_checker=checker).is_valid(value)


if __name__ == "__main__":
    main()
