"""The numbers of all advisory locks that gateways take in their database, so that no two are the same.

"descant" in ASCII, then a number: one that nobody else who uses the database is likely to lock.
"""

from typing import Final

MIGRATION: Final = 0x6465_7363_616E_7401
"""A literal in migrations/env.py too. It never changes: two releases that start at once wait for one another by it."""
PARTITIONS: Final = 0x6465_7363_616E_7402
UPKEEP: Final = 0x6465_7363_616E_7403
PROMPT_RETENTION: Final = 0x6465_7363_616E_7404
