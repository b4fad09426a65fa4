"""Hashes by which equal prefixes find each other's KV blocks.

A block's hash covers its own tokens and, through its parent's hash, every token before it. The chain starts from
what else the KV depends on: the model, the adapter's content, and the tenant, who must not learn from timing what
others have asked (CVE-2025-46570). SHA-256, so that no prompt can be made to collide with another's.
"""

from array import array
from collections.abc import Sequence
from hashlib import sha256

from descant_engine.cache.block_pool import BlockHash


def chain_root(model: str, adapter_content: str | None, tenant_salt: str) -> BlockHash:
    """Where the chain of one (model, adapter, tenant) starts."""
    # Each part by its own digest: no two triples run together into the same bytes.
    parts = (model, "base" if adapter_content is None else f"adapter:{adapter_content}", tenant_salt)
    return BlockHash(sha256(b"".join(sha256(part.encode()).digest() for part in parts)).digest())


def extend_chain(parent: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
    """The hashes of the full blocks of `token_ids`, which follow the block hashed as `parent`."""
    tokens = memoryview(array("q", token_ids)).cast("B")
    bytes_per_block = 8 * block_size
    hashes: list[BlockHash] = []
    for start in range(0, len(tokens) - bytes_per_block + 1, bytes_per_block):
        parent = BlockHash(sha256(parent + tokens[start : start + bytes_per_block]).digest())
        hashes.append(parent)
    return hashes
