"""`descant gateway check FILE`: whether a catalogue file is right, and what it would change."""

import asyncio
import os
from pathlib import Path

import click
from sqlalchemy.exc import SQLAlchemyError

from descant_gateway.catalogue.entries import CatalogueFile
from descant_gateway.catalogue.file import CatalogueFileError, parse_catalogue
from descant_gateway.config import ConfigError, Secret, database_url
from descant_gateway.store import catalogue_sync
from descant_gateway.store.catalogue_sync import Change
from descant_gateway.store.session import create_engine


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--offline", is_flag=True, help="Check the file alone, without the database.")
def check(file: Path, offline: bool) -> None:
    """Check a catalogue FILE (descant.toml) and show what it would change.

    The database is DESCANT_DATABASE_URL's; nothing is changed. Ends with status 1 if the file has mistakes.
    """
    wanted = _read(file)
    for name in _unset_variables(wanted):
        click.echo(f"warning: the environment variable {name} is not set here")
    if offline:
        click.echo(f"{file} is right: {_summary(wanted)}.")
        return
    changes = _differences(wanted)
    for change in changes:
        click.echo(str(change))
    click.echo(f"{file} is right: {_summary(wanted)}; {len(changes)} differences to the database.")


def _read(file: Path) -> CatalogueFile:
    try:
        return parse_catalogue(file.read_text(encoding="utf-8"))
    except CatalogueFileError as error:
        lines = "\n".join(f"{file}: {problem}" for problem in error.problems)
        raise click.ClickException(f"the catalogue file has mistakes:\n{lines}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"cannot read {file}: {error}") from error


def _differences(wanted: CatalogueFile) -> list[Change]:
    try:
        return asyncio.run(_ask(database_url(os.environ), wanted))
    except ConfigError as error:
        raise click.ClickException(f"{error}\n(--offline checks the file alone.)") from error
    except (OSError, SQLAlchemyError) as error:
        raise click.ClickException(f"the database cannot be read: {type(error).__name__}: {error}") from error


async def _ask(url: Secret, wanted: CatalogueFile) -> list[Change]:
    engine = create_engine(url, pool_size=1)
    try:
        async with engine.connect() as connection:
            return await catalogue_sync.differences(connection, wanted)
    finally:
        await engine.dispose()


def _unset_variables(wanted: CatalogueFile) -> list[str]:
    names = {backend.api_key_env for backend in wanted.backends.values() if backend.api_key_env is not None}
    return sorted(name for name in names if not os.environ.get(name))


def _summary(wanted: CatalogueFile) -> str:
    return f"{len(wanted.backends)} backends, {len(wanted.models)} models, {len(wanted.aliases)} aliases"
