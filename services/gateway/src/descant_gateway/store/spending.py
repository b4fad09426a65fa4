"""What the ledger says was used in the current day, week and month: the truth behind the counters of budgets."""

from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from sqlalchemy import BigInteger, Subquery, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ColumnElement

from descant_gateway.limits.limit import Period
from descant_gateway.store.charges import charges

PERIODS: Final = (Period.DAY, Period.WEEK, Period.MONTH)
_OWNERS: Final = ("organization_id", "team_id", "project_id", "key_id")
_MODELS: Final = ("model", "parent", "alias_of")


class Spent(Struct, frozen=True):
    tokens: int = 0
    microdollars: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.tokens + other.tokens, self.microdollars + other.microdollars)


Spending = dict[tuple[UUID, str | None, Period], Spent]
"""By the owner of a budget, the model that it counts (None: all), and its period."""


async def spending(connection: AsyncConnection, begins: dict[Period, datetime]) -> Spending:
    """Since each period's beginning."""
    first = min(begins.values())
    source = charges(first, first + timedelta(days=64))
    dimensions = [source.c[name] for name in (*_OWNERS, *_MODELS)]
    sums = [column for period in PERIODS for column in _sums(source, period, begins[period])]
    found: defaultdict[tuple[UUID, str | None, Period], Spent] = defaultdict(Spent)
    for row in await connection.execute(select(*dimensions, *sums).group_by(*dimensions)):
        owners = {getattr(row, name) for name in _OWNERS} - {None}
        models = {None} | {getattr(row, name) for name in _MODELS}
        for period in PERIODS:
            spent = Spent(getattr(row, f"tokens_{period}"), getattr(row, f"money_{period}"))
            for owner in owners:
                for model in models:
                    found[owner, model, period] += spent
    return found


def _sums(source: Subquery, period: Period, begin: datetime) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    c = source.c
    return (
        _since(c.prompt_tokens + c.completion_tokens, source, begin).label(f"tokens_{period}"),
        _since(c.cost_microdollars, source, begin).label(f"money_{period}"),
    )


def _since(amount: ColumnElement[Any], source: Subquery, begin: datetime) -> ColumnElement[Any]:
    return func.coalesce(func.sum(amount).filter(source.c.hour >= begin), 0).cast(BigInteger)
