"""How much may be tried again: a share of all requests, so that an outage is never answered with twice the load.

A token bucket as in Finagle's RetryBudget: each request pays in a part of a retry, each retry takes a whole one.
"""

from typing import Final

SHARE: Final = 0.2
RESERVE: Final = 10.0
"""Retries that a gateway with little traffic may make; the most that are saved up, too."""


class RetryBudget:
    __slots__ = ("_balance",)

    def __init__(self) -> None:
        self._balance = RESERVE

    def deposit(self) -> None:
        """A request came in."""
        self._balance = min(self._balance + SHARE, RESERVE)

    def withdraw(self) -> bool:
        """Whether one may be tried again."""
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
