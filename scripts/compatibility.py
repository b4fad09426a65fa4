"""Writes docs/compatibility.md out of the conformance suite's table: `.venv/bin/python scripts/compatibility.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.conformance.page import PAGE, render


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE.relative_to(Path(__file__).parents[1])} is written.")


if __name__ == "__main__":
    main()
