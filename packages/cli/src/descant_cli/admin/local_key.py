"""The admin key of the `descant up` on this machine, so that `descant admin` works beside it without a word."""

from pathlib import Path
from urllib.parse import urlsplit

import click

from descant_cli.up.data_folder import read_secrets
from descant_cli.up.problem import UpProblem

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_admin_key(url: str, data_dir: Path) -> str | None:
    """None where `data_dir` is nobody's, or where the gateway is another machine's: the key is not for that one.

    Raises:
        click.ClickException: the folder is there and cannot be read.
    """
    try:
        if urlsplit(url).hostname not in LOOPBACK:
            return None
        return read_secrets(data_dir.expanduser()).admin_key
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except (OSError, UpProblem) as problem:
        raise click.ClickException(f"{problem} Or set DESCANT_ADMIN_KEY.") from None
