"""`descant version`."""

import platform
from importlib import metadata

import click

_SHOWN = (
    "descant-cli", "descant-gateway", "descant-server", "descant-engine", "descant-kernels",
    "torch", "triton", "transformers",
)  # fmt: skip


@click.command()
def version() -> None:
    """Show the versions of Descant and what it runs on; reads package metadata, imports nothing."""
    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _SHOWN:
        click.echo(f"{name} {_installed(name)}")


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
