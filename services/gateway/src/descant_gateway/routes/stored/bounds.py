"""How much a team may leave with the gateway, and how long it is kept."""

from datetime import timedelta

from msgspec import Struct


class StoreBounds(Struct, frozen=True, kw_only=True):
    max_file_bytes: int
    max_team_bytes: int
    """All files of one team together."""
    keep: timedelta
    form_overhead_bytes: int = 64 << 10
    """Of an upload, around the file."""
