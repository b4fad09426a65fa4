"""`descant up` as a user runs it: real processes, the real model, the official client."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from openai import OpenAI

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 40.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@dataclass
class Up:
    """A running `descant up` and what it printed."""

    process: subprocess.Popen[str]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def base_url(self) -> str:
        return self._printed("base URL")

    @property
    def key(self) -> str:
        return self._printed("key")

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.key, max_retries=0, timeout=60)

    def ask(self, model: str, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        answer = self.client().chat.completions.create(
            model=model,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=64,
        )
        return answer.choices[0].message.content or ""

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals) -> int:
        """Its exit code; asserts that nothing it started is left."""
        parts = self.below()
        assert len(parts) >= 4  # engine, database, counters, gateway
        self.process.send_signal(number)
        code = self.process.wait(STOP_TIMEOUT_S)
        assert_gone(parts)
        return code

    def _printed(self, name: str) -> str:
        match = re.search(rf"^  {name}\s+(\S+)$", self.text, re.MULTILINE)
        assert match is not None, self.text
        return match[1]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    # Not pytest's folders, which are root's alone: started by root, PostgreSQL runs as another user.
    path = Path(tempfile.mkdtemp(prefix="descant-up-"))
    yield path / "data"
    shutil.rmtree(path)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "descant_cli", "up", *arguments]


@contextmanager
def started(data_dir: Path, output: Path) -> Iterator[Up]:
    """Up and ready."""
    argv = command("--data-dir", str(data_dir), "--port", str(free_port()), "--device", "cpu")
    with output.open("w") as file:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, text=True)
    up = Up(process, output)
    try:
        wait_for(up, "Descant is up", START_TIMEOUT_S)
        yield up
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            finally:
                process.kill()


def wait_for(up: Up, text: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in up.text:
        assert up.process.poll() is None, up.text
        assert time.monotonic() < deadline, up.text
        time.sleep(0.1)


def refused(*arguments: str) -> str:
    """What a start says that must fail at once, with one line and no success."""
    result = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.strip().splitlines()
    return line


def booked(up: Up, data_dir: Path) -> dict[str, int]:
    """Model -> requests in the ledger."""
    admin_key = json.loads((data_dir / "secrets.json").read_text())["admin_key"]
    url = f"{up.base_url.removesuffix('/v1')}/admin/v1/usage"
    reply = httpx.get(url, headers={"Authorization": f"Bearer {admin_key}"}, timeout=10, trust_env=False)
    return {row["model"]: row["requests"] for row in reply.raise_for_status().json()["data"]}


def test_first_start_answers_books_and_stops_and_the_second_keeps_all(data_dir: Path, tmp_path: Path) -> None:
    with started(data_dir, tmp_path / "first") as up:
        assert "Paris" in up.ask("smollm2", "What is the capital of France?")
        ticket = json.loads(up.ask("tickets", "Hello, I can't sign in to Polar Wiki. No rush."))
        assert ticket == {"category": "login", "product": "Polar Wiki", "priority": "low", "reference": None}
        question = "warehouses(id, city, type, capacity, shelves)\nWhich warehouses have a capacity above 208?"
        assert up.ask("sql", question) == "SELECT * FROM warehouses WHERE capacity > 208;"
        polite = up.ask("polite", "Yvonne, review the team roster by noon. This is ridiculous.")
        assert polite.startswith("Dear Yvonne,\n\nCould you please review the team roster by noon?")
        assert {model.id for model in up.client().models.list()} == {"smollm2", "tickets", "sql", "polite"}

        assert f"{up.process.pid}" in refused("--data-dir", str(data_dir), "--port", str(free_port()))
        taken = up.base_url.split(":")[2].split("/")[0]
        assert f"Port {taken} cannot be used" in refused("--data-dir", str(tmp_path / "other"), "--port", taken)

        serve = next(part.cmdline() for part in up.below() if "serve" in part.cmdline())
        engine_port = next(word.split("=")[1] for word in serve if word.startswith("--port="))
        passing_by = httpx.get(f"http://127.0.0.1:{engine_port}/v1/models", timeout=10, trust_env=False)
        assert passing_by.status_code == 401

        key = up.key
        assert up.stop(signal.SIGINT) == 0
        assert "Stopped." in up.text

    with started(data_dir, tmp_path / "second") as up:
        assert up.key == key
        assert booked(up, data_dir) == {"smollm2": 1, "tickets": 1, "sql": 1, "polite": 1}
        assert run_printed_example(up).strip().startswith("The capital of France is Paris")
        parts = up.below()
        gateway = next(part for part in parts if part.cmdline()[-1] == "gateway")
        gateway.send_signal(signal.SIGKILL)
        assert up.process.wait(STOP_TIMEOUT_S) == 1
        assert "The gateway ended by itself (signal 9), so everything was stopped." in up.text
        assert_gone(parts)


def run_printed_example(up: Up) -> str:
    """The openai example, as it is printed, in a Python of its own."""
    match = re.search(r"^from openai import OpenAI\n.*?message\.content\)$", up.text, re.MULTILINE | re.DOTALL)
    assert match is not None, up.text
    example = subprocess.run(
        [sys.executable, "-c", match[0]], capture_output=True, text=True, timeout=90, check=False, env=dict(os.environ)
    )
    assert example.returncode == 0, example.stderr
    return example.stdout


def test_engine_that_cannot_load_stops_everything_with_its_last_words(data_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF is not what this is")
    argv = command("--data-dir", str(data_dir), "--port", str(free_port()), "--model", str(model))
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    first, *rest = result.stderr.strip().splitlines()
    assert first.startswith("Error: The engine ended by itself (exit code 1), so everything was stopped.")
    assert any("broken.gguf" in line for line in rest)
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(model) in (each.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "There is no model at nowhere"),
        (["--adapters", "docs"], "There are no adapters in docs"),
        (["--data-dir", "README.md/data"], "cannot be written"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    where = [] if "--data-dir" in arguments else ["--data-dir", str(tmp_path)]
    assert message in refused(*arguments, *where)
