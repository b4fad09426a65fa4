"""Which commit a figure is of."""

import subprocess
from pathlib import Path


def git_commit(folder: Path = Path(__file__).parent) -> str | None:
    """Of the checkout that `folder` lies in; None where there is no git checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
