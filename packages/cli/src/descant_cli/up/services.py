"""The engine and the gateway as parts of the stack, each the same command that runs it alone."""

import sys
from collections.abc import Mapping
from typing import Final

import httpx

from descant_cli.up.data_folder import DataFolder, Secrets
from descant_cli.up.embedded import postgres_url, valkey_url
from descant_cli.up.options import HOST, UpOptions
from descant_cli.up.process import Part

_DESCANT: Final = (sys.executable, "-m", "descant_cli")


def engine(options: UpOptions, secrets: Secrets) -> Part:
    argv = [
        *_DESCANT,
        "serve",
        options.model,
        f"--served-model-name={options.model_name}",
        f"--host={HOST}",
        f"--port={options.engine_port}",
        f"--device={options.device}",
    ]
    if options.adapters:
        argv += ["--enable-lora", "--lora-modules", *(f"{folder.name}={folder}" for folder in options.adapters)]
    return Part(
        name="engine",
        argv=tuple(argv),
        environment={"DESCANT_API_KEY": secrets.engine_key, "DESCANT_INTERNAL_KEY": secrets.internal_key},
        is_ready=lambda: _answers(f"{engine_url(options)}/ready"),
    )


def engine_url(options: UpOptions) -> str:
    return f"http://{HOST}:{options.engine_port}"


def gateway(options: UpOptions, folder: DataFolder, secrets: Secrets) -> Part:
    return Part(
        name="gateway",
        argv=(*_DESCANT, "gateway"),
        environment=gateway_environment(options, folder, secrets),
        is_ready=lambda: _answers(f"{gateway_url(options)}/ready"),
    )


def gateway_url(options: UpOptions) -> str:
    return f"http://{HOST}:{options.gateway_port}"


def gateway_environment(options: UpOptions, folder: DataFolder, secrets: Secrets) -> Mapping[str, str]:
    return {
        "DESCANT_DATABASE_URL": postgres_url(folder),
        "DESCANT_VALKEY_URL": valkey_url(folder),
        "DESCANT_KEY_PEPPER": secrets.key_pepper,
        "DESCANT_ADMIN_KEY": secrets.admin_key,
        "DESCANT_INTERNAL_KEY": secrets.internal_key,
        "DESCANT_GATEWAY_HOST": HOST,
        "DESCANT_GATEWAY_PORT": str(options.gateway_port),
        "DESCANT_LEDGER_SPOOL_DIR": str(folder.ledger_spool),
        "DESCANT_SHUTDOWN_GRACE_S": "10",
    }


MIGRATE: Final = (sys.executable, "-m", "descant_gateway.store.migrate")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
