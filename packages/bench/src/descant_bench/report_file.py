"""The JSON file that a measurement leaves, and the options that name it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path


def add_report_options(parser: argparse.ArgumentParser, *synonyms: str) -> None:
    """`--output`, also by the `synonyms`, and `--commit`."""
    parser.add_argument("--output", *synonyms, type=Path, metavar="OUT.json")
    parser.add_argument("--commit", help="for the report; asked of git where left out")


def write_report(path: Path, report: object) -> None:
    """Writes over what was there. Dataclasses, at any depth, become objects."""
    path.write_text(json.dumps(report, indent=1, default=asdict) + "\n")
