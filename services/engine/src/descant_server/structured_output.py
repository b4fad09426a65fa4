"""From the wire to a grammar: `response_format`, `structured_outputs` and the older `guided_*`."""

from typing import NamedTuple

import msgspec

from descant_engine.grammar.spec import GrammarKind, GrammarRefused, GrammarSpec
from descant_wire.errors import ApiError, invalid_request
from descant_wire.sampling import SamplingFields
from descant_wire.structured import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    Schema,
    StructuralTagFormat,
    StructuredOutputs,
)

JSON_OBJECT = '{"type": "object"}'


class Demand(NamedTuple):
    """A grammar, and the field that asked for it."""

    field: str
    grammar: GrammarSpec


def demand_of(request: SamplingFields) -> Demand | None:
    """What the output's form has to be; None leaves it free.

    Raises:
        ApiError: 400, more than one demand, or one that is malformed. Whether it can be met is known later.
    """
    try:
        demands = [*_of_response_format(request.response_format), *_of_structured(request), *_of_guided(request)]
    except GrammarRefused as error:
        raise invalid_grammar(str(error), "response_format") from None
    except RecursionError:
        raise invalid_grammar("it is nested too deeply", "response_format") from None
    if len(demands) > 1:
        names = " and ".join(f"`{demand.field}`" for demand in demands)
        raise invalid_request(f"{names} ask for a form of the output each: give one.", param=demands[1].field)
    return demands[0] if demands else None


def invalid_grammar(reason: str, field: str) -> ApiError:
    return invalid_request(f"`{field}` cannot be met: {reason}.", param=field, code="invalid_grammar")


def schema_text(schema: Schema | str) -> str:
    return schema if isinstance(schema, str) else msgspec.json.encode(schema).decode()


def _of_response_format(wanted: ResponseFormat | None) -> list[Demand]:
    match wanted:
        case JsonObjectFormat():
            return [_demand("response_format", GrammarKind.JSON_SCHEMA, JSON_OBJECT)]
        case JsonSchemaFormat(json_schema=named):
            text = JSON_OBJECT if named.schema is None else schema_text(named.schema)
            return [_demand("response_format", GrammarKind.JSON_SCHEMA, text)]
        case StructuralTagFormat():
            return [_demand("response_format", GrammarKind.STRUCTURAL_TAG, msgspec.json.encode(_tag(wanted)).decode())]
        case _:
            return []


def _tag(wanted: StructuralTagFormat) -> dict[str, object]:
    parts = {"format": wanted.format, "structures": wanted.structures, "triggers": wanted.triggers}
    return {"type": "structural_tag"} | {name: part for name, part in parts.items() if part is not None}


def _of_structured(request: SamplingFields) -> list[Demand]:
    wanted = request.structured_outputs
    if wanted is None:
        return []
    demands = _parts(wanted, "structured_outputs.")
    if wanted.json_object:
        demands.append(_demand("structured_outputs.json_object", GrammarKind.JSON_SCHEMA, JSON_OBJECT))
    if wanted.structural_tag is not None:
        text = wanted.structural_tag
        text = text if isinstance(text, str) else msgspec.json.encode(text).decode()
        demands.append(_demand("structured_outputs.structural_tag", GrammarKind.STRUCTURAL_TAG, text))
    return demands


def _of_guided(request: SamplingFields) -> list[Demand]:
    older = StructuredOutputs(
        json=request.guided_json,
        regex=request.guided_regex,
        choice=request.guided_choice,
        grammar=request.guided_grammar,
    )
    return _parts(older, "guided_")


def _parts(wanted: StructuredOutputs, prefix: str) -> list[Demand]:
    demands = []
    if wanted.json is not None:
        demands.append(_demand(f"{prefix}json", GrammarKind.JSON_SCHEMA, schema_text(wanted.json)))
    if wanted.regex is not None:
        demands.append(_demand(f"{prefix}regex", GrammarKind.REGEX, wanted.regex))
    if wanted.choice is not None:
        if not wanted.choice or "" in wanted.choice:
            raise invalid_grammar("there must be at least one choice, and none empty", f"{prefix}choice")
        demands.append(_demand(f"{prefix}choice", GrammarKind.CHOICE, msgspec.json.encode(wanted.choice).decode()))
    if wanted.grammar is not None:
        demands.append(_demand(f"{prefix}grammar", GrammarKind.EBNF, wanted.grammar))
    return demands


def _demand(field: str, kind: GrammarKind, text: str) -> Demand:
    return Demand(field, GrammarSpec(kind, text))
