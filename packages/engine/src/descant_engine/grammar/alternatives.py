"""Outputs of one of several forms, each a sequence of texts, tokens and JSON values. llguidance's Lark says it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from descant_engine.grammar.schema import check_has_finite_output, closed, read_schema
from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class TokenPart(msgspec.Struct, frozen=True, tag="token"):
    """A token without a text, such as a special one."""

    token_id: int


class JsonPart(msgspec.Struct, frozen=True, tag="json"):
    """A JSON value of a schema. References in it begin at its own root."""

    schema: Any


class RegexPart(msgspec.Struct, frozen=True, tag="regex"):
    pattern: str


Part = TextPart | TokenPart | JsonPart | RegexPart


class Alternative(msgspec.Struct, frozen=True):
    parts: tuple[Part, ...]
    separator: str | None = None
    """With it the parts may come again and again, this text between."""


def alternatives_spec(alternatives: Sequence[Alternative]) -> GrammarSpec:
    return GrammarSpec(GrammarKind.ALTERNATIVES, msgspec.json.encode(alternatives).decode())


def checked_alternatives(text: str) -> str:
    """The same, its schemas closed as those that stand alone. Raises GrammarRefused."""
    try:
        alternatives = msgspec.json.decode(text, type=list[Alternative])
    except msgspec.MsgspecError as error:
        raise GrammarRefused(f"these are no alternatives: {error}") from None
    return msgspec.json.encode([Alternative(tuple(map(_checked, a.parts)), a.separator) for a in alternatives]).decode()


def _checked(part: Part) -> Part:
    if not isinstance(part, JsonPart):
        return part
    schema = read_schema(json.dumps(part.schema))
    check_has_finite_output(schema)
    return JsonPart(closed(schema))


def lark_of(text: str, json_options: Mapping[str, object]) -> str:
    """`json_options` are llguidance's, of every JSON value."""
    alternatives = msgspec.json.decode(text, type=list[Alternative])
    names = [f"form{index}" for index in range(len(alternatives))]
    rules = [f"start: {' | '.join(names)}"]
    for name, alternative in zip(names, alternatives, strict=True):
        sequence = " ".join(_term(part, json_options) for part in alternative.parts)
        if alternative.separator is None:
            rules.append(f"{name}: {sequence}")
        else:
            rules.append(f"{name}: {name}_one ({_literal(alternative.separator)} {name}_one)*")
            rules.append(f"{name}_one: {sequence}")
    return "\n".join(rules)


def _term(part: Part, json_options: Mapping[str, object]) -> str:
    match part:
        case TextPart(text):
            return _literal(text)
        case TokenPart(token_id):
            return f"<[{token_id}]>"
        case JsonPart(schema):
            return f"%json {json.dumps(schema | {'x-guidance': json_options})}"
        case RegexPart(pattern):
            return f"/{pattern.replace('/', chr(92) + '/')}/"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
