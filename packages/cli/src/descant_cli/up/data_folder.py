"""The folder of one Descant: database, counters, logs and secrets. Whoever has it locked owns all that runs on it."""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from descant_cli.up.problem import UpProblem

MIN_FREE_BYTES: Final = 300 << 20
"""A new PostgreSQL takes 40 MB, its write-ahead log up to 200 MB more at first."""
SECRETS_FILE: Final = "secrets.json"
MAX_SOCKET_PATH: Final = 90
"""The kernel allows 107 bytes for a unix socket's path; the servers add their own file names to the folder's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Made at the first start, kept for good. Whoever can read the file owns the installation."""

    key_pepper: str
    admin_key: str
    engine_key: str
    """What the engine asks of the gateway, so that nobody on this machine passes it by."""
    team_key: str | None = None
    """The demo team's API key; None until it is registered."""

    @property
    def internal_key(self) -> str:
        """With which the gateway signs for the engine whose a request is."""
        return hashlib.sha256(f"internal:{self.engine_key}".encode()).hexdigest()

    @classmethod
    def generate(cls) -> "Secrets":
        return cls(key_pepper=secrets.token_hex(32), admin_key=secrets.token_hex(32), engine_key=secrets.token_hex(32))


@dataclass(frozen=True, slots=True)
class DataFolder:
    path: Path
    sockets: Path
    """Where the embedded servers listen. In the data folder, or beside it in /tmp where that path is too long."""

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def valkey(self) -> Path:
        return self.path / "valkey"

    @property
    def ledger_spool(self) -> Path:
        return self.path / "ledger-spool"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def secrets(self) -> Secrets:
        """Those of the last start, or new ones, already saved."""
        try:
            return read_secrets(self.path)
        except FileNotFoundError:
            generated = Secrets.generate()
            self._save(generated)
            return generated

    def keep_team_key(self, team_key: str) -> Secrets:
        kept = replace(self.secrets(), team_key=team_key)
        self._save(kept)
        return kept

    def _save(self, values: Secrets) -> None:
        """Replaces the file whole: a crash leaves the old one or the new one."""
        handle, name = tempfile.mkstemp(dir=self.path)  # readable by the owner only
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(values), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, self.path / SECRETS_FILE)


def read_secrets(path: Path) -> Secrets:
    """Those in the data folder `path`.

    Raises:
        FileNotFoundError: nothing was ever started there.
        UpProblem: the file is damaged.
    """
    file = path / SECRETS_FILE
    try:
        return Secrets(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UpProblem(f"{file} is damaged: restore it, or give another --data-dir to start afresh.") from error


@contextmanager
def open_data_folder(path: Path) -> Iterator[DataFolder]:
    """Create the folder where it is missing, and hold its lock.

    Raises:
        UpProblem: it cannot be written, the disk is nearly full, or another `descant up` has it.
    """
    path = path.expanduser().absolute()
    _create(path)
    _require_space(path)
    with _locked(path), _socket_folder(path) as sockets:
        folder = DataFolder(path, sockets)
        for each in (folder.valkey, folder.ledger_spool, folder.logs):
            each.mkdir(exist_ok=True)
        yield folder


def _create(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UpProblem(
            f"The data folder {path} cannot be written ({error.strerror}): give another one with --data-dir."
        ) from error


def _require_space(path: Path) -> None:
    free = shutil.disk_usage(path).free
    if free < MIN_FREE_BYTES:
        raise UpProblem(
            f"Only {free >> 20} MB are free on the disk of {path}, {MIN_FREE_BYTES >> 20} MB are needed: "
            "make room, or give a folder on another disk with --data-dir."
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Opened for appending: a second start must not empty the first one's note. The lock goes when the process does.
    with open(path / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UpProblem(
                f"Descant is already up on {path} (process {file.read().strip()}): "
                "stop that one, or give another --data-dir and --port."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def _socket_folder(path: Path) -> Iterator[Path]:
    own = path / "run"
    if len(os.fsencode(own)) <= MAX_SOCKET_PATH:
        own.mkdir(exist_ok=True)
        yield own
        return
    with tempfile.TemporaryDirectory(prefix="descant-") as temporary:
        os.chmod(temporary, 0o711)  # as root, PostgreSQL runs as another user and must pass through
        yield Path(temporary)
