"""What a catalogue file says of backends and models, decoded and not yet checked against one another."""

from collections.abc import Callable, Mapping
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from descant_gateway.catalogue.routing_policy import Fallback, RoutingPolicy, TimeLimits, Variant
from descant_gateway.catalogue.snapshot import Protocol

END: Final = r"$(?!\n)"
"""Of a pattern: `$` alone is before a last line break too."""
NO_BLANKS_AT_ENDS: Final = r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?" + END
Name = Annotated[str, Meta(max_length=200, pattern=NO_BLANKS_AT_ENDS)]
Weight = Annotated[int, Meta(ge=1, le=10_000)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Report = Callable[[tuple[str, ...], str], None]
"""Takes the path of a field and what is wrong with it."""


class BackendEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str
    api_key_env: str | None = None
    """The environment variable that holds its key, on every gateway."""
    protocol: Protocol = Protocol.OPENAI
    external: bool = False
    max_in_flight: Count | None = None


class ModelEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    upstream_name: Name | None = None
    """None: the model's own name."""
    parent: Name | None = None
    backends: dict[Name, Weight] | list[Name] = field(default_factory=dict)
    """With weights, or in equal shares."""
    max_output_tokens: Count = 4096
    fallbacks: tuple[Fallback, ...] = ()
    canary: Variant | None = None
    shadow: Variant | None = None
    time_limits: TimeLimits = TimeLimits()

    @property
    def weights(self) -> Mapping[str, int]:
        return self.backends if isinstance(self.backends, dict) else dict.fromkeys(self.backends, 1)

    @property
    def policy(self) -> RoutingPolicy:
        return RoutingPolicy(
            fallbacks=self.fallbacks, canary=self.canary, shadow=self.shadow, time_limits=self.time_limits
        )


class CatalogueFile(Struct, frozen=True, kw_only=True):
    backends: Mapping[str, BackendEntry] = field(default_factory=dict)
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
