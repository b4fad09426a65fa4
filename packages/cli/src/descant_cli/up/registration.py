"""Tells the gateway what the engine serves, through the same admin API that everybody uses."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import click
import httpx

from descant_cli.admin.client import AdminClient, Fields
from descant_cli.admin.urls import path
from descant_cli.up.data_folder import DataFolder, Secrets
from descant_cli.up.options import UpOptions
from descant_cli.up.problem import UpProblem
from descant_cli.up.services import engine_url, gateway_url

BACKEND: Final = "local"
TEAM: Final = "demo"
KEY: Final = "descant up"
SEEN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    name: str
    parent: str | None
    """The base model, if this is an adapter."""


def register(options: UpOptions, folder: DataFolder, secrets: Secrets) -> Secrets:
    """Backend and models as they are now; team and key at the first start. Returns the secrets with the key, a new one
    once the gateway takes it.

    Raises:
        UpProblem: the engine or the gateway does not answer as it should.
    """
    try:
        served = _served_models(engine_url(options), secrets.engine_key)
        with AdminClient(gateway_url(options), secrets.admin_key) as client:
            client.put("/backends", {"name": BACKEND, "base_url": engine_url(options), "api_key": secrets.engine_key})
            _put_models(client, served)
            if secrets.team_key:
                return secrets  # its owner may have revoked it since
            key = _create_key(client)
        kept = folder.keep_team_key(key)
        _wait_until_seen(gateway_url(options), key, {model.name for model in served})
        return kept
    except click.ClickException as error:
        raise UpProblem(f"The gateway refused its set-up: {error.message}") from error
    except (httpx.HTTPError, LookupError, TypeError, ValueError) as error:
        raise UpProblem(f"The engine did not say which models it serves: {error}") from error


def _served_models(url: str, key: str) -> list[ServedModel]:
    """Base models first, so that an adapter's parent is known before it."""
    headers = {"Authorization": f"Bearer {key}"}
    reply = httpx.get(f"{url}/v1/models", headers=headers, timeout=10.0, trust_env=False)
    reply.raise_for_status()
    models = [ServedModel(entry["id"], entry.get("parent")) for entry in reply.json()["data"]]
    return sorted(models, key=lambda model: model.parent is not None)


def _wait_until_seen(url: str, key: str, names: set[str]) -> None:
    """The gateway answers requests from a snapshot, which follows the database by a moment."""
    deadline = time.monotonic() + SEEN_TIMEOUT_S
    headers = {"Authorization": f"Bearer {key}"}
    while True:
        reply = httpx.get(f"{url}/v1/models", headers=headers, timeout=10.0, trust_env=False)
        if reply.is_success and names <= {entry["id"] for entry in reply.json()["data"]}:
            return
        if time.monotonic() > deadline:
            raise UpProblem(f"The gateway does not take the key it made: {reply.text[:200]}")
        time.sleep(0.05)


def _put_models(client: AdminClient, served: list[ServedModel]) -> None:
    for name in _stale_names(list(client.rows("/models")), {model.name for model in served}):
        client.delete(f"/models/{path(name)}")
    for model in served:
        backends = [BACKEND] if model.parent is None else []
        client.put("/models", {"name": model.name, "parent": model.parent, "backends": backends})


def _stale_names(rows: list[Fields], served: set[str]) -> Iterator[str]:
    """What an earlier start registered and this engine does not serve: adapters, then bases. Never an alias's model."""
    aliased = {row["alias_of"] for row in rows}
    bases = {row["name"] for row in rows if row["backends"] == [BACKEND]}
    adapters = {row["name"] for row in rows if row["parent"] in bases and not row["backends"]}
    kept_parents = {row["parent"] for row in rows if row["name"] not in adapters or row["name"] in aliased}
    for name in sorted(map(str, adapters - served - aliased)):
        yield name
    for name in sorted(map(str, bases - served - aliased - kept_parents)):
        yield name


def _create_key(client: AdminClient) -> str:
    """A key of the demo team, which an unfinished first start may have left without one."""
    teams = [row for row in client.rows("/teams") if row["name"] == TEAM]
    team = teams[0] if teams else client.post("/teams", {"name": TEAM})
    return str(client.post("/keys", {"team_id": team["id"], "name": KEY})["api_key"])
