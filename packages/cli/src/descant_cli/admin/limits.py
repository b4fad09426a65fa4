"""The options that limit teams and keys."""

from dataclasses import dataclass
from typing import Final

import click

from descant_cli.admin.option_values import takes

LIFTED: Final = "none"


class LimitParam(click.ParamType):  # type: ignore[type-arg]
    """A number above 0, or `none` for no limit."""

    name = "N|none"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == LIFTED:
            return LIFTED
        text = str(value).replace("_", "")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            self.fail(f"{value!r} is neither a number above 0 nor '{LIFTED}'.", param, ctx)
        return int(text)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """A minute's limits of a team or key; None where nothing was given."""

    requests_per_minute: int | str | None
    tokens_per_minute: int | str | None

    @property
    def fields(self) -> dict[str, object]:
        """Those that were given; `none` as the null that lifts a limit."""
        given = {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}
        return {name: None if value == LIFTED else value for name, value in given.items() if value is not None}


takes_rate_limits = takes(
    "rates",
    RateLimits,
    click.option("--rpm", "requests_per_minute", type=LimitParam(), help="Requests per minute."),
    click.option("--tpm", "tokens_per_minute", type=LimitParam(), help="Tokens per minute."),
)
