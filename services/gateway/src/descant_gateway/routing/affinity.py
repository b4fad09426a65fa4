"""Which requests belong together, and which backend they would all choose: so that a prompt's beginning is computed
once.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN 1998):
every backend has a score for every key, and the highest wins; when a backend comes or goes, only its own keys move.
`route` bounds the load beside it. Weights after Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from msgspec import Raw, Struct

PREFIX_BYTES: Final = 1024
"""Requests that begin alike for so long go together. A shorter prompt is computed sooner than an uneven load is paid
for, and a longer key would change with every turn of a conversation that is shorter than it."""
SESSION_HEADER: Final = b"x-session-id"
SESSION_FIELDS: Final = ("prompt_cache_key", "user")
PROMPT_FIELDS: Final = ("messages", "prompt", "input")
_MAX_SESSION_BYTES: Final = 512
_MASK: Final = (1 << 64) - 1


class AffinityKind(StrEnum):
    SESSION = "session"
    PREFIX = "prefix"


class Affinity(Struct, frozen=True):
    kind: AffinityKind
    key: int
    """64 bits. Of one tenant and one model: nobody can aim at another's."""


def affinity_of(headers: Mapping[bytes, bytes], members: Mapping[str, Raw], tenant: str, model: str) -> Affinity | None:
    """By the session that the client names, else by the first bytes of the prompt; None if that is short."""
    session = _session(headers, members)
    if session:
        return Affinity(AffinityKind.SESSION, _hash(tenant, model, session[:_MAX_SESSION_BYTES]))
    for field in PROMPT_FIELDS:
        prompt = members.get(field)
        if prompt is not None:
            start = bytes(memoryview(prompt)[:PREFIX_BYTES])
            return Affinity(AffinityKind.PREFIX, _hash(tenant, model, start)) if len(start) == PREFIX_BYTES else None
    return None


def score(key: int, backend: str, weight: int) -> float:
    """The backend with the highest score has the key; each gets a share of all keys in proportion to its weight."""
    mixed = _mix(key ^ _seed(backend))
    return -weight / math.log((mixed + 1) / (_MASK + 2))


def _session(headers: Mapping[bytes, bytes], members: Mapping[str, Raw]) -> bytes:
    given = headers.get(SESSION_HEADER)
    if given:
        return given
    for field in SESSION_FIELDS:
        value = bytes(members.get(field, b""))
        if value not in (b"", b"null", b'""'):
            return value
    return b""


def _hash(tenant: str, model: str, text: bytes) -> int:
    digest = blake2b(text, digest_size=8, key=b"descant affinity")
    digest.update(f"\0{tenant}\0{model}".encode())
    return int.from_bytes(digest.digest(), "big")


@lru_cache(maxsize=4096)
def _seed(backend: str) -> int:
    return int.from_bytes(blake2b(backend.encode(), digest_size=8).digest(), "big")


def _mix(value: int) -> int:
    """splitmix64's finisher: every bit of the result depends on every bit of the value."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
