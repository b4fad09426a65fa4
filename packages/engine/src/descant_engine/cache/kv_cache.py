"""Which blocks hold a request's keys and values."""

from collections.abc import Sequence

from descant_engine.cache.block_pool import BlockHash, BlockPool
from descant_engine.cache.prefix import chain_root, extend_chain
from descant_engine.request import Request


class KvCache:
    """Fills and empties `Request.block_ids`. A request's block table only ever grows until `free`.

    Full blocks are cached once their tokens are known and computed, or on their way: steps run in plan order, and
    within a step each layer writes all keys and values before it reads any, so whoever finds a block reads it after
    it was written.
    """

    def __init__(self, pool: BlockPool, block_size: int, model: str, *, enable_prefix_caching: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._model = model
        self._enable_prefix_caching = enable_prefix_caching
        self._hashes: dict[str, list[BlockHash]] = {}
        """Request id -> the hashes of its first known full blocks; kept while the request lives."""
        self._num_cached: dict[str, int] = {}
        """Request id -> how many of its blocks are cached, while it holds blocks."""
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def num_slots(self, request: Request) -> int:
        """How many tokens the blocks that it holds have room for."""
        return len(request.block_ids) * self._block_size

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def num_new_blocks(self, request: Request, num_tokens: int) -> int:
        """How many blocks `grow` would take."""
        return max(self.num_blocks_for(num_tokens) - len(request.block_ids), 0)

    def acquire_prefix(self, request: Request) -> None:
        """Gives an empty request the longest cached prefix; at least its last token is left to compute."""
        assert not request.block_ids
        if request.wants_whole_prompt:
            return
        if not self._enable_prefix_caching:
            self._share_prompt(request)
            return
        num_reusable = (request.num_known_tokens - 1) // self._block_size
        for block_hash in self._known_hashes(request)[:num_reusable]:
            block_id = self._pool.find(block_hash)
            if block_id is None:
                break
            self._pool.acquire(block_id)
            request.block_ids.append(block_id)
        self._num_cached[request.request_id] = len(request.block_ids)

    def _share_prompt(self, request: Request) -> None:
        """The prompt's full blocks of a request that is another sample of it: they stay the same while both live."""
        if request.first_sample is None:
            return
        num_reusable = (len(request.spec.prompt_token_ids) - 1) // self._block_size
        request.block_ids.extend(request.first_sample.block_ids[:num_reusable])
        for block_id in request.block_ids:
            self._pool.acquire(block_id)

    def count_prefix_query(self, request: Request) -> None:
        """For the metrics: the request was admitted, for the first time, with what `acquire_prefix` found."""
        if self._enable_prefix_caching:
            self.num_query_tokens += request.num_known_tokens
            self.num_hit_tokens += request.num_computed_tokens
            self._pool.prefix_reuse = self.num_hit_tokens / self.num_query_tokens

    def grow(self, request: Request, num_tokens: int) -> tuple[int, ...]:
        """Blocks for the first `num_tokens` tokens; returns those added. The pool must have `num_new_blocks` free."""
        new_block_ids = self._pool.allocate(self.num_new_blocks(request, num_tokens))
        request.block_ids.extend(new_block_ids)
        return new_block_ids

    def cache_full_blocks(self, request: Request) -> None:
        """Makes blocks findable whose tokens are all known and computed."""
        if not self._enable_prefix_caching:
            return
        num_full = min(request.num_computed_tokens, request.num_known_tokens) // self._block_size
        num_cached = self._num_cached.get(request.request_id, 0)
        if num_full <= num_cached:
            return
        hashes = self._known_hashes(request)
        for index in range(num_cached, num_full):
            self._pool.cache(request.block_ids[index], hashes[index])
        self._num_cached[request.request_id] = num_full

    def free(self, request: Request) -> None:
        """Gives all blocks back; cached ones stay findable, the end of the chain is evicted before its beginning."""
        self._pool.release(reversed(request.block_ids))
        request.block_ids.clear()
        self._num_cached.pop(request.request_id, None)

    def forget(self, request: Request) -> None:
        """Frees the request and all that was remembered of it."""
        self.free(request)
        self._hashes.pop(request.request_id, None)

    def check_integrity(self, requests: Sequence[Request]) -> None:
        """Asserts that only `requests`, all that live, are remembered and hold the blocks their tokens need."""
        alive = {request.request_id for request in requests}
        assert self._hashes.keys() <= alive
        assert self._num_cached.keys() <= alive
        for request in requests:
            assert len(set(request.block_ids)) == len(request.block_ids), f"{request.request_id} holds a block twice"
            assert len(request.block_ids) >= self.num_blocks_for(request.num_computed_tokens)
            assert self._num_cached.get(request.request_id, 0) <= len(request.block_ids)

    def _known_hashes(self, request: Request) -> list[BlockHash]:
        spec = request.spec
        hashes = self._hashes.setdefault(request.request_id, [])
        start, stop = len(hashes) * self._block_size, request.num_known_tokens
        if stop - start >= self._block_size:
            parent = hashes[-1] if hashes else chain_root(self._model, request.adapter_content, spec.tenant_salt)
            hashes += extend_chain(parent, _token_ids(request, start), self._block_size)
        return hashes


def _token_ids(request: Request, start: int) -> list[int]:
    """Known tokens from `start` on, without copying those before."""
    num_prompt_tokens = len(request.spec.prompt_token_ids)
    return [*request.spec.prompt_token_ids[start:], *request.output_token_ids[max(start - num_prompt_tokens, 0) :]]
