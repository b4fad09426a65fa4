"""Whether the parts of a catalogue file fit together: every name is somebody's, nothing stands for itself."""

from collections.abc import Mapping
from typing import Final

from descant_gateway.catalogue.entries import BackendEntry, CatalogueFile, ModelEntry, Report

_OWN_VARIABLES: Final = "DESCANT_"


def check_references(catalogue: CatalogueFile, names: Mapping[str, frozenset[str]], report: Report) -> None:
    """`names`: of each section, those of entries with other mistakes too, so that one mistake is told once."""
    for name, backend in catalogue.backends.items():
        _check_backend(name, backend, report)
    for name, model in catalogue.models.items():
        _check_parent(name, model, catalogue, names, report)
        _check_served(name, model, names, report)
        _check_policy(name, model, names, report)
    for name, target in catalogue.aliases.items():
        _check_alias(name, target, names, report)


def _check_backend(name: str, backend: BackendEntry, report: Report) -> None:
    if backend.api_key_env is not None and backend.api_key_env.startswith(_OWN_VARIABLES):
        # A backend must not be sent the gateway's own secrets, whoever wrote the file.
        report(("backends", name, "api_key_env"), f"{backend.api_key_env!r} is one of the gateway's own variables")


def _check_parent(
    name: str, model: ModelEntry, catalogue: CatalogueFile, names: Mapping[str, frozenset[str]], report: Report
) -> None:
    if model.parent is None:
        return
    path, parent = ("models", name, "parent"), catalogue.models.get(model.parent)
    if model.parent not in names["models"] or model.parent == name:
        report(path, f"there is no other model {model.parent!r}")
    elif parent is not None and parent.parent is not None:
        report(path, f"{model.parent!r} is an adapter itself; name its base model {parent.parent!r}")


def _check_served(name: str, model: ModelEntry, names: Mapping[str, frozenset[str]], report: Report) -> None:
    if not model.backends and model.parent is None:
        report(("models", name), "a base model needs at least one backend")
    if isinstance(model.backends, list) and len(set(model.backends)) < len(model.backends):
        report(("models", name, "backends"), "a backend is named twice")
    for backend in model.weights:
        if backend not in names["backends"]:
            report(("models", name, "backends"), f"there is no backend {backend!r}")


def _check_policy(name: str, model: ModelEntry, names: Mapping[str, frozenset[str]], report: Report) -> None:
    said = {f"fallbacks[{index}]": fallback.model for index, fallback in enumerate(model.fallbacks)}
    said |= {"canary": model.canary.model} if model.canary is not None else {}
    said |= {"shadow": model.shadow.model} if model.shadow is not None else {}
    for field, other in said.items():
        path = ("models", name, field.partition("[")[0])
        if other == name:
            report(path, f"{other!r} is the model itself")
        elif other not in names["models"]:
            report(path, f"there is no model {other!r}")


def _check_alias(name: str, target: str, names: Mapping[str, frozenset[str]], report: Report) -> None:
    path = ("aliases", name)
    if name in names["models"]:
        report(path, "is the name of a model too")
    if target in names["aliases"]:
        report(path, f"{target!r} is an alias itself")
    elif target not in names["models"]:
        report(path, f"there is no model {target!r}")
