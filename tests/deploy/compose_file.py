"""compose.yaml as Compose would read it: parsed, merged and with the variables put in."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}")


class MissingVariable(Exception):
    """A ${NAME:?message} without a value."""


def read(environment: Mapping[str, str]) -> Any:
    return _interpolate(yaml.safe_load((ROOT / "compose.yaml").read_text()), environment)


def _interpolate(node: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _interpolate(value, environment) for key, value in node.items()}
    if isinstance(node, list):
        return [_interpolate(value, environment) for value in node]
    return _VARIABLE.sub(lambda match: _value(match, environment), node) if isinstance(node, str) else node


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    value = environment.get(match["name"], "")
    if value:
        return value
    if match["operator"] == ":?":
        raise MissingVariable(f"{match['name']}: {match['rest']}")
    return match["rest"] or ""
