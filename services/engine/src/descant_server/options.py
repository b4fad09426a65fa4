"""Command-line options in groups that commands share, and options that take several words as vLLM's do."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

import click

MODEL = "Model"
MEMORY = "Memory and batching"
OUTPUT = "Structured output, tools, reasoning"
SPECULATION = "Speculation"
ADAPTERS = "Adapters"
SERVER = "Server"

Command = Callable[..., None]
Option = Callable[[Command], Command]
OptionsT = TypeVar("OptionsT")


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


def option(group: str, *names: str, **attributes: Any) -> Option:
    """`attributes` are click's."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


def takes(name: str, kind: type[OptionsT], options: Sequence[Option]) -> Option:
    """Gives a command these options, and calls it with all their values as one, a dataclass, called `name`."""
    own = {field.name for field in fields(kind)}  # type: ignore[arg-type]

    def decorate(command: Command) -> Command:
        @wraps(command)
        def call(**given: Any) -> None:
            values = {key: given.pop(key) for key in own}
            command(**given, **{name: kind(**values)})

        decorated: Command = call
        for each in reversed(options):
            decorated = each(decorated)
        return decorated

    return decorate


class GroupedCommand(click.Command):
    """`--lora-modules a=x b=y` means what `--lora-modules a=x --lora-modules b=y` does."""

    several_words = "--lora-modules"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _repeat_option(self.several_words, args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, GroupedOption) and record is not None:
                groups.setdefault(parameter.group, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def _repeat_option(option: str, args: list[str]) -> list[str]:
    """Puts `option` before each word of form name=value that follows its first one."""
    repeated: list[str] = []
    is_inside = False
    for word in args:
        is_value = is_inside and "=" in word and not word.startswith("-")
        if is_value and repeated[-1] != option:
            repeated.append(option)
        repeated.append(word)
        is_inside = word == option or is_value
    return repeated
