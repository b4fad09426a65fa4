"""Every row of docs/compatibility.md is what happens."""

import pytest

from .option import Option
from .stack import Stack
from .table import OPTIONS


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.api.name.lower()}-{option.name}")
def test_option(option: Option, stack: Stack) -> None:
    option.check(stack)
