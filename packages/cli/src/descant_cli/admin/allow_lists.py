"""The options that say which models and adapters may be used."""

from typing import Final

import click

LIFTED: Final = "none"

models_option = click.option(
    "--model", "models", multiple=True, help="Allow only this model; may be repeated; 'none' lifts the list."
)
adapters_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="Allow only this adapter, whatever the models are; may be repeated; 'none' lifts the list.",
)


def list_fields(models: tuple[str, ...], adapters: tuple[str, ...]) -> dict[str, object]:
    """The lists that were given; `none` as the null that lifts one."""
    given = {"allowed_models": models, "allowed_adapters": adapters}
    return {name: None if names == (LIFTED,) else list(names) for name, names in given.items() if names}
