"""The model catalogue as code: `descant.toml`, with every mistake in it named by line and field.

[backends.engine-0]
base_url = "http://engine-0:8000"
max_in_flight = 64

[backends.cloud]
base_url = "https://api.anthropic.com"
protocol = "anthropic"
external = true
api_key_env = "ANTHROPIC_API_KEY"

[models.smollm2]
upstream_name = "HuggingFaceTB/SmolLM2-135M-Instruct"
backends = { engine-0 = 3, engine-1 = 1 }
fallbacks = [{ model = "claude", on = ["timeout", "5xx"] }]

[models.pirate]
parent = "smollm2"

[aliases]
gpt-4 = "smollm2"
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from descant_gateway.catalogue.checks import check_references
from descant_gateway.catalogue.entries import BackendEntry, CatalogueFile, ModelEntry, Name, Report
from descant_gateway.catalogue.toml_lines import line_of
from descant_gateway.egress.address import normal_base_url

EntryT = TypeVar("EntryT")

_SECTIONS: Final = ("backends", "models", "aliases")


class Problem(Struct, frozen=True):
    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.field}: {self.message}" if self.field else f"{where}{self.message}"


class CatalogueFileError(ValueError):
    """The file makes no catalogue. `problems` are all that are wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def parse_catalogue(text: str) -> CatalogueFile:
    """Raises CatalogueFileError."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueFileError([Problem(None, "", f"not TOML: {error}")]) from None
    problems: list[Problem] = []

    def report(path: tuple[str, ...], message: str) -> None:
        problems.append(Problem(line_of(text, path), ".".join(path), message))

    for name in data.keys() - set(_SECTIONS):
        report((name,), f"unknown; there are {', '.join(_SECTIONS)}")
    backends = dict(_entries(data, "backends", BackendEntry, report))
    models = dict(_entries(data, "models", ModelEntry, report))
    aliases = dict(_entries(data, "aliases", str, report))
    catalogue = CatalogueFile(backends=_with_checked_urls(backends, report), models=models, aliases=aliases)
    check_references(catalogue, {section: _names(data, section) for section in _SECTIONS}, report)
    if problems:
        raise CatalogueFileError(sorted(problems, key=lambda problem: problem.line or 0))
    return catalogue


def _entries(data: Mapping[str, Any], section: str, kind: type[EntryT], report: Report) -> Iterator[tuple[str, EntryT]]:
    entries = data.get(section, {})
    if not isinstance(entries, dict):
        report((section,), f"must be a table: [{section}.NAME]")
        return
    for name, entry in entries.items():
        try:
            yield msgspec.convert(name, Name), msgspec.convert(entry, kind)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$")
            report((section, name, *_keys(path, message)), message)


def _keys(path: str, message: str) -> tuple[str, ...]:
    """Of msgspec's path; an unknown field is named in its message only."""
    keys = tuple(key for key in path.rstrip("`").replace("[", ".").split(".") if key and not key.endswith("]"))
    return (*keys, message.split("`")[1]) if "unknown field" in message else keys


def _with_checked_urls(backends: dict[str, BackendEntry], report: Report) -> dict[str, BackendEntry]:
    checked: dict[str, BackendEntry] = {}
    for name, entry in backends.items():
        try:
            checked[name] = msgspec.structs.replace(entry, base_url=normal_base_url(entry.base_url))
        except ValueError as error:
            report(("backends", name, "base_url"), f"{entry.base_url!r} {error}")
            checked[name] = entry
    return checked


def _names(data: Mapping[str, Any], section: str) -> frozenset[str]:
    entries = data.get(section, {})
    return frozenset(entries) if isinstance(entries, dict) else frozenset()
