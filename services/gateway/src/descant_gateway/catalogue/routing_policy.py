"""How the requests for one model are routed, beyond its backends: set by an operator, stored as JSON with the model."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from descant_gateway.storable import StorableText

Percent = Annotated[float, Meta(ge=0, le=100)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class FailureKind(StrEnum):
    """Why a backend did not answer a request, as fallbacks are configured by."""

    CONNECT = "connect"
    """No backend is healthy, or none could be reached."""
    TIMEOUT = "timeout"
    """No first byte in time."""
    SERVER_ERROR = "5xx"
    RATE_LIMITED = "429"
    """By the backend itself."""
    CONTEXT_LENGTH = "context_length"
    """The prompt is too long for the model."""
    SATURATION = "saturation"
    """Every backend has as much as it takes at once."""


EVERY_FAILURE = frozenset(FailureKind)


class Fallback(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another model for requests that this one's backends failed at. Tried in the order of the list."""

    model: StorableText
    on: frozenset[FailureKind] = EVERY_FAILURE


class Variant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of the requests, for another model: as a canary instead of this one, as a shadow besides it."""

    model: StorableText
    percent: Percent


class TimeLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds; None leaves it to the gateway's configuration."""

    first_byte_s: Seconds | None = None
    idle_s: Seconds | None = None
    """Between two events of a stream."""
    total_s: Seconds | None = None


class RoutingPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    fallbacks: tuple[Fallback, ...] = ()
    canary: Variant | None = None
    shadow: Variant | None = None
    time_limits: TimeLimits = TimeLimits()

    @property
    def has_way_out(self) -> bool:
        """Whether another model is there for when this one's backends are full."""
        return any(FailureKind.SATURATION in fallback.on for fallback in self.fallbacks)

    @property
    def models(self) -> frozenset[str]:
        """The other models that it names."""
        variants = [variant.model for variant in (self.canary, self.shadow) if variant is not None]
        return frozenset([*variants, *(fallback.model for fallback in self.fallbacks)])


NO_POLICY = RoutingPolicy()
