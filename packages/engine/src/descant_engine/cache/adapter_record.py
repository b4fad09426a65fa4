"""A registered adapter, as the caches know it."""

from dataclasses import dataclass, field
from enum import Enum

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.cache.worth import Popularity


class Copy(Enum):
    """State of one tier's copy of an adapter."""

    ABSENT = 0
    LOADING = 1
    READY = 2


@dataclass(slots=True, eq=False)
class Adapter:
    """What is known of a registered adapter. Each field is written by one class of this folder only."""

    manifest: AdapterManifest
    num_blocks: int
    num_users: int = 0
    """Unfinished requests."""
    num_pins: int = 0
    """Running requests."""
    host: Copy = Copy.ABSENT
    device: Copy = Copy.ABSENT
    slot: int = -1
    block_ids: tuple[int, ...] = ()
    popularity: Popularity = field(default_factory=Popularity)
    is_removed: bool = False

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def is_loading(self) -> bool:
        return Copy.LOADING in (self.host, self.device)
