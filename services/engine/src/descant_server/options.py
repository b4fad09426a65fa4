"""Command-line options in groups, and options that take several words as vLLM's do."""

from typing import Any

import click


class GroupedOption(click.Option):
    """An option that `--help` lists under the heading `group`."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


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
