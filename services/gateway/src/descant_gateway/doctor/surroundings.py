"""What lies around the gateway: addresses, encryption on the way, the disk of the spool."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from descant_gateway.config import GatewayConfig
from descant_gateway.doctor.finding import Finding, good, problem, warning

MIN_FREE_BYTES: Final = 1 << 30
_HERE: Final = frozenset({None, "", "localhost", "127.0.0.1", "::1"})


def examine_surroundings(config: GatewayConfig) -> Iterator[Finding]:
    yield _database_encryption(config)
    yield _valkey_encryption(config)
    yield _internal_key(config)
    yield from _spool(config.ledger.spool_dir)


def is_local(host: str | None) -> bool:
    return host in _HERE


def _database_encryption(config: GatewayConfig) -> Finding:
    parts = urlsplit(config.database.url.reveal())
    mode = parse_qs(parts.query).get("sslmode", ["prefer"])[0]
    if is_local(parts.hostname) or mode in {"require", "verify-ca", "verify-full"}:
        return good("PostgreSQL is here, or is spoken to over TLS")
    return warning(
        f"PostgreSQL at {parts.hostname} may be spoken to without TLS (sslmode={mode})",
        "add ?sslmode=verify-full to DESCANT_DATABASE_URL",
    )


def _valkey_encryption(config: GatewayConfig) -> Finding:
    parts = urlsplit(config.valkey.url.reveal())
    if is_local(parts.hostname) or parts.scheme in {"rediss", "valkeys", "unix"}:
        return good("Valkey is here, or is spoken to over TLS")
    return warning(f"Valkey at {parts.hostname} is spoken to without TLS", "use valkeys:// in DESCANT_VALKEY_URL")


def _internal_key(config: GatewayConfig) -> Finding:
    if config.identity.internal_key is not None:
        return good("engines are told whose a request is, signed")
    return warning(
        "DESCANT_INTERNAL_KEY is not set: teams share the engines' prefix cache, and one can time another's prompts",
        "set the same DESCANT_INTERNAL_KEY for gateway and engines (openssl rand -hex 32)",
    )


def _spool(folder: Path) -> Iterator[Finding]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield problem(
            f"the ledger's spool {folder} can't be written: {error.strerror}: while PostgreSQL is away, usage is lost",
            "point DESCANT_LEDGER_SPOOL_DIR to a folder that the gateway may write, on a disk that outlives it",
        )
        return
    if free < MIN_FREE_BYTES:
        yield warning(
            f"the ledger's spool {folder} has {free >> 20} MiB left", f"make room: at least {MIN_FREE_BYTES >> 20} MiB"
        )
    else:
        yield good(f"the ledger's spool can be written and has {free >> 30} GiB left")
