"""What of a listing may be seen: a condition for its query, so that a page never holds what it must not."""

from typing import Any

from sqlalchemy import false, or_, true
from sqlalchemy.sql import ColumnElement

from descant_gateway.identity.roles import Reach


def within(reach: Reach, organization_id: ColumnElement[Any], team_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """True of the rows that belong to an organization or a team of the reach."""
    if reach.everything:
        return true()
    conditions = []
    if reach.organization_ids:
        conditions.append(organization_id.in_(reach.organization_ids))
    if reach.team_ids:
        conditions.append(team_id.in_(reach.team_ids))
    return or_(*conditions) if conditions else false()
