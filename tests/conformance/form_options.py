"""Options that say what form an output has to have: OpenAI's `response_format`, and vLLM's."""

import json
import re
from typing import Any

from .asking import Asking, assert_refused
from .model_folder import mark_id, token_id
from .sampling_options import BOTH

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
COMPACT = dict.fromkeys((*map(token_id, "ĠĊĉč"), mark_id("<think>")), -100)
"""JSON may have spaces between its parts, and thoughts before it; the bare model would not end either."""
TAG = {
    "type": "structural_tag",
    "format": {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "[0-9]{3}"}, "end": "</a>"},
}
IMPOSSIBLE = {"type": "object", "properties": {"x": {"type": "nothing"}}}


def assert_fits(answer: str) -> None:
    found = json.loads(answer)
    assert isinstance(found["ok"], bool)
    assert found["size"] in ("s", "m")
    assert len(found) == 2


@BOTH.works(
    "response_format",
    "text, json_object, json_schema (kept to whether `strict` or not) and vLLM's structural_tag. A schema that cannot"
    " be met is refused with the reason.",
)
def response_format(asking: Asking) -> None:
    def formed(**form: Any) -> str:
        return asking.ask(response_format=form, max_tokens=100, logit_bias=COMPACT).text

    assert_fits(formed(type="json_schema", json_schema={"name": "answer", "schema": SCHEMA, "strict": True}))
    cut = asking.ask(response_format={"type": "json_object"}, max_tokens=20)
    assert cut.text.startswith("{")
    assert asking.ask(response_format={"type": "text"}).text == asking.ask().text
    assert re.fullmatch(r"<a>\d{3}</a>", formed(**TAG))
    impossible = {"type": "json_schema", "json_schema": {"name": "x", "schema": IMPOSSIBLE}}
    assert_refused(asking.create, "response_format", impossible)


def formed(asking: Asking, **option: Any) -> str:
    """An output of one form: the same in one piece and in many."""
    answer = asking.ask(max_tokens=100, logit_bias=COMPACT, **option)
    assert answer.choices[0].finish_reason == "stop"
    return answer.text


@BOTH.works(
    "structured_outputs", "json, regex, choice, grammar (EBNF or Lark), json_object, structural_tag: one of them."
)
def structured_outputs(asking: Asking) -> None:
    assert_fits(formed(asking, structured_outputs={"json": SCHEMA}))
    assert re.fullmatch("[ab]{6}", formed(asking, structured_outputs={"regex": "[ab]{6}"}))
    assert formed(asking, structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert formed(asking, structured_outputs={"grammar": 'root ::= "x" "y"'}) == "xy"
    assert re.fullmatch(r"<a>\d{3}</a>", formed(asking, structured_outputs={"structural_tag": TAG}))
    assert_refused(asking.create, "structured_outputs", {"choice": []})
    assert_refused(asking.create, "structured_outputs", {"regex": "["})


@BOTH.works("guided_json", "The older name.")
def guided_json(asking: Asking) -> None:
    assert_fits(formed(asking, guided_json=SCHEMA))


@BOTH.works("guided_regex", "The older name.")
def guided_regex(asking: Asking) -> None:
    assert re.fullmatch("[ab]{6}", formed(asking, guided_regex="[ab]{6}"))


@BOTH.works("guided_choice", "The older name.")
def guided_choice(asking: Asking) -> None:
    assert formed(asking, guided_choice=["yes", "no"]) in ("yes", "no")


@BOTH.works("guided_grammar", "The older name.")
def guided_grammar(asking: Asking) -> None:
    assert formed(asking, guided_grammar='root ::= "x" "y"') == "xy"
