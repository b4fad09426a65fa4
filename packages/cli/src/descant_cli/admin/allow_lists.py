"""The options that say which models and adapters may be used."""

from dataclasses import dataclass
from typing import Final

import click

from descant_cli.admin.option_values import takes

LIFTED: Final = "none"


@dataclass(frozen=True, slots=True)
class AllowLists:
    """Empty where nothing was given."""

    models: tuple[str, ...]
    adapters: tuple[str, ...]

    @property
    def fields(self) -> dict[str, object]:
        """The lists that were given; `none` as the null that lifts one."""
        given = {"allowed_models": self.models, "allowed_adapters": self.adapters}
        return {name: None if names == (LIFTED,) else list(names) for name, names in given.items() if names}


takes_allow_lists = takes(
    "allowed",
    AllowLists,
    click.option(
        "--model", "models", multiple=True, help="Allow only this model; may be repeated; 'none' lifts the list."
    ),
    click.option(
        "--adapter",
        "adapters",
        multiple=True,
        help="Allow only this adapter, whatever the models are; may be repeated; 'none' lifts the list.",
    ),
)
