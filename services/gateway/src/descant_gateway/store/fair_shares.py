"""What the fair queue goes by: teams' priorities and weights, and how much backends take at once."""

from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from descant_gateway.store.errors import NotFound
from descant_gateway.store.tables import backends, teams


async def put_team(connection: AsyncConnection, team_id: UUID, *, priority: int, weight: int) -> None:
    """Raises NotFound."""
    statement = update(teams).where(teams.c.id == team_id).values(priority=priority, weight=weight)
    if (await connection.execute(statement)).rowcount == 0:
        raise NotFound("team", team_id)


async def put_backend(connection: AsyncConnection, name: str, max_in_flight: int | None) -> None:
    """Raises NotFound."""
    statement = update(backends).where(backends.c.name == name).values(max_in_flight=max_in_flight)
    if (await connection.execute(statement)).rowcount == 0:
        raise NotFound("backend", name)
