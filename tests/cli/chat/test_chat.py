"""`descant chat` with a real server: piped lines, a terminal, and what its commands do."""

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from tests.bench.engine_server import engine_server, save_strong_adapter, save_tiny_model

from descant_cli.chat.client import ChatClient
from descant_cli.chat.conversation import Conversation
from descant_cli.main import main


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chat")
    adapter = save_strong_adapter(folder / "red", 1)
    model = save_tiny_model(folder / "model")
    with engine_server(model, "--lora-modules", f"red={adapter}", "--max-model-len", "256") as address:
        yield address


def talk(url: str, lines: list[str], *options: str) -> Result:
    arguments = ["chat", "--url", url, *options]
    return CliRunner().invoke(main, arguments, input="".join(f"{line}\n" for line in lines))


def test_models_are_listed_and_switched(url: str) -> None:
    result = talk(url, ["/model", "/model red", "/model", "/model blue", "/quit", "never said"])
    assert result.exit_code == 1, "there is no blue"
    assert "* tiny\n  red\n" in result.stderr
    assert "now talking to red" in result.stderr
    assert "  tiny\n* red\n" in result.stderr
    assert "there is no model 'blue'; there are: tiny, red" in result.stderr
    assert result.stdout == ""


def test_answers_stream_to_standard_output(url: str) -> None:
    result = talk(url, ["Hello"], "--model", "tiny")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.strip()) > 0
    assert result.stderr == ""


def test_a_script_is_told_that_a_turn_failed(url: str) -> None:
    result = talk(url, ["x" * 1000, "short"])
    assert result.exit_code == 1
    assert "error:" in result.stderr
    assert len(result.stdout.strip()) > 0, "and the next turn was answered"


def test_errors_leave_no_trace_in_the_conversation(url: str) -> None:
    notes: list[str] = []
    with ChatClient(url, None) as client:
        conversation = Conversation(client, "tiny", lambda text: None, notes.append)
        conversation.take("x" * 1000)
        assert "error:" in notes[-1]
        assert conversation.messages == []
        conversation.take("short")
        roles = [message["role"] for message in conversation.messages]
        assert roles == ["user", "assistant"]
        conversation.take("/reset")
        assert conversation.messages == []


def test_the_system_prompt_is_sent(url: str) -> None:
    written: list[str] = []
    with ChatClient(f"{url}/v1", None) as client:
        conversation = Conversation(client, "tiny", written.append, lambda line: None)
        conversation.take("/system " + "Answer briefly. " * 20)
        conversation.take("Hi")  # the system prompt alone exceeds the model's length
        assert conversation.messages == []
        conversation.take("/system")
        assert conversation.system is None


def test_unknown_commands_show_the_known_ones(url: str) -> None:
    assert "no command /modle" in talk(url, ["/modle red"]).stderr


def test_no_server_is_one_line(url: str) -> None:
    result = talk("http://127.0.0.1:9", ["Hello"])
    assert result.exit_code == 1
    assert "cannot reach http://127.0.0.1:9" in result.stderr


def test_in_a_terminal(url: str) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "descant_cli", "chat", "--url", url, "--model", "tiny"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, close_fds=True)
    os.close(child)
    try:
        _read_until(parent, r"> $")
        os.write(parent, b"Hello\n")
        _read_until(parent, r"Hello\r\n(.|\n)+\r\n> $")
        os.write(parent, b"/quit\n")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)


def _read_until(terminal: int, pattern: str, seconds: float = 40) -> str:
    deadline, seen = time.monotonic() + seconds, ""
    os.set_blocking(terminal, False)
    while not re.search(pattern, seen):
        assert time.monotonic() < deadline, f"waited in vain for {pattern!r} in {seen!r}"
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.02)
    return seen
