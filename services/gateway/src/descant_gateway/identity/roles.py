"""Who may administer what: roles, granted for the whole installation, one organization or one team."""

from enum import IntEnum, StrEnum
from typing import Final, Self
from uuid import UUID

from msgspec import Struct


class Role(StrEnum):
    """Each may do what those below may."""

    OWNER = "owner"
    """Makes and removes owners; changes what its organization may use."""
    ADMIN = "admin"
    """Manages teams, projects, people, service accounts and everybody's keys."""
    MEMBER = "member"
    """Makes keys, and manages its own."""
    VIEWER = "viewer"
    """Sees, and changes nothing."""

    @property
    def rank(self) -> int:
        return _RANKS[self]

    def covers(self, other: "Role") -> bool:
        return self.rank >= other.rank


_RANKS: Final = {Role.VIEWER: 1, Role.MEMBER: 2, Role.ADMIN: 3, Role.OWNER: 4}


class Level(IntEnum):
    TEAM = 1
    ORGANIZATION = 2
    INSTALLATION = 3


class Permission(Struct, frozen=True):
    """What a route needs: this role for a thing at this level, or for what the thing lies in."""

    role: Role
    level: Level = Level.TEAM
    """The lowest level at which the role is of use here."""


class Grant(Struct, frozen=True):
    """A role for the installation (both ids None), an organization, or one team of it."""

    role: Role
    organization_id: UUID | None = None
    team_id: UUID | None = None

    @property
    def level(self) -> Level:
        if self.team_id is not None:
            return Level.TEAM
        return Level.ORGANIZATION if self.organization_id is not None else Level.INSTALLATION

    def reaches(self, organization_id: UUID | None, team_id: UUID | None) -> bool:
        """True if the thing of this organization and team (None: above them) lies within the grant."""
        if self.organization_id is not None and self.organization_id != organization_id:
            return False
        return self.team_id is None or self.team_id == team_id


class ActorKind(StrEnum):
    ADMIN_KEY = "admin_key"
    """The holder of DESCANT_ADMIN_KEY: owner of the installation."""
    PERSON = "person"
    KEY = "key"


class Actor(Struct, frozen=True):
    """Who does something, as the audit log names it."""

    kind: ActorKind
    id: str
    name: str

    @property
    def reference(self) -> str:
        return f"{self.kind}:{self.id}"


class Reach(Struct, frozen=True):
    """What may be seen: everything, or what belongs to these organizations or teams."""

    everything: bool = False
    organization_ids: frozenset[UUID] = frozenset()
    team_ids: frozenset[UUID] = frozenset()


EVERYTHING: Final = Reach(everything=True)


class Principal(Struct, frozen=True):
    """An actor with its grants."""

    actor: Actor
    grants: tuple[Grant, ...]

    @classmethod
    def admin_key(cls) -> Self:
        return cls(Actor(ActorKind.ADMIN_KEY, "admin-key", "the admin key"), (Grant(Role.OWNER),))

    def role_in(self, organization_id: UUID | None, team_id: UUID | None = None) -> Role | None:
        """The highest role over that thing. Both None: over the installation."""
        roles = [grant.role for grant in self.grants if grant.reaches(organization_id, team_id)]
        return max(roles, key=lambda role: role.rank, default=None)

    def may(self, role: Role, organization_id: UUID | None, team_id: UUID | None = None) -> bool:
        held = self.role_in(organization_id, team_id)
        return held is not None and held.covers(role)

    def may_somewhere(self, needed: Permission) -> bool:
        """Enough to enter a route that needs this; which thing it is about is decided behind it."""
        return any(grant.role.covers(needed.role) and grant.level >= needed.level for grant in self.grants)

    def reach(self, role: Role = Role.VIEWER) -> Reach:
        """All over which the principal has at least this role."""
        grants = [grant for grant in self.grants if grant.role.covers(role)]
        return Reach(
            everything=any(grant.level is Level.INSTALLATION for grant in grants),
            organization_ids=frozenset(
                grant.organization_id for grant in grants if grant.organization_id and grant.level is Level.ORGANIZATION
            ),
            team_ids=frozenset(grant.team_id for grant in grants if grant.team_id),
        )
