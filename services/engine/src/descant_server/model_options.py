"""Which names requests may say, and what each means: the base model's, and adapters'."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from descant_server.config import AdapterSource
from descant_server.options import ADAPTERS, MODEL, Option, option, takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What was given, or its default."""

    served_model_names: tuple[str, ...]
    lora_modules: tuple[str, ...]
    """NAME=PATH each."""
    lora_dir: Path | None

    @property
    def names_adapters(self) -> bool:
        return bool(self.lora_modules) or self.lora_dir is not None

    def adapters(self, model: str) -> tuple[AdapterSource, ...]:
        """Raises click.BadParameter: not of the form, or a name that something else has."""
        base_names: Sequence[str] = self.served_model_names or (model,)
        sources: dict[str, AdapterSource] = {}
        for module in self.lora_modules:
            name, equals, path = module.partition("=")
            if not (name and equals and path):
                raise click.BadParameter(f"{module!r} is not NAME=PATH", param_hint="--lora-modules")
            if name in sources or name in base_names:
                raise click.BadParameter(f"the name {name!r} is given twice", param_hint="--lora-modules")
            sources[name] = AdapterSource(name, path)
        return tuple(sources.values())


_OPTIONS: Final[tuple[Option, ...]] = (
    option(
        MODEL,
        "--served-model-name",
        "served_model_names",
        multiple=True,
        metavar="NAME",
        help="The id that requests say, MODEL by default. Repeat it for several; answers show the first.",
    ),
    option(
        ADAPTERS,
        "--lora-modules",
        "lora_modules",
        multiple=True,
        metavar="NAME=PATH ...",
        help="Adapters to serve, each a folder in PEFT's format. Implies --enable-lora. One that can't be served"
        " ends the"
        " start with the reason; weights are read when a request needs them.",
    ),
    option(
        ADAPTERS,
        "--lora-dir",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Serve every adapter in FOLDER, a PEFT folder each, by its folder's name. Implies --enable-lora. None is"
        " looked at before a request names it, so a thousand cost no time at the start.",
    ),
)

takes_model_options = takes("names", ModelOptions, _OPTIONS)
