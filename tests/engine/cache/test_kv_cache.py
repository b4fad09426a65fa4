import pytest

from descant_engine.cache.block_pool import BlockPool
from descant_engine.cache.kv_cache import KvCache
from descant_engine.request import EngineRequest, Request
from descant_engine.sampling_params import SamplingParams

BLOCK_SIZE = 4


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(10)


@pytest.fixture
def kv(pool: BlockPool) -> KvCache:
    return KvCache(pool, BLOCK_SIZE, "some-model", enable_prefix_caching=True)


def _request(request_id: str, prompt: range) -> Request:
    spec = EngineRequest(request_id=request_id, prompt_token_ids=tuple(prompt), params=SamplingParams())
    return Request(spec=spec, max_tokens=8, seed=0)


def _compute(kv: KvCache, request: Request, num_tokens: int) -> None:
    kv.grow(request, num_tokens)
    request.num_computed_tokens = num_tokens
    kv.cache_full_blocks(request)


def test_blocks_are_added_only_when_a_border_is_crossed(kv: KvCache) -> None:
    request = _request("r", range(5))
    assert kv.num_new_blocks(request, 5) == 2
    assert len(kv.grow(request, 5)) == 2
    assert kv.grow(request, 8) == ()
    assert len(kv.grow(request, 9)) == 1
    assert len(set(request.block_ids)) == 3


def test_only_computed_blocks_are_found(kv: KvCache) -> None:
    first, second = _request("first", range(20)), _request("second", range(20))
    kv.grow(first, 20)
    _compute(kv, first, 11)
    kv.acquire_prefix(second)
    assert second.block_ids == first.block_ids[:2]
    kv.check_integrity([first, second])


def test_only_blocks_of_known_tokens_are_found(kv: KvCache) -> None:
    request = _request("r", range(7))
    request.num_inflight_samples = 1
    _compute(kv, request, 8)
    request.output_token_ids.append(7)
    other = _request("other", range(20))
    kv.acquire_prefix(other)
    assert len(other.block_ids) == 1
    kv.free(other)
    kv.cache_full_blocks(request)
    kv.acquire_prefix(other)
    assert len(other.block_ids) == 2


def test_a_prefix_outlives_its_request_until_its_blocks_are_needed(kv: KvCache, pool: BlockPool) -> None:
    gone = _request("gone", range(12))
    _compute(kv, gone, 12)
    kv.forget(gone)
    assert pool.num_free_blocks == 10
    filler = _request("filler", range(100, 132))
    kv.grow(filler, 32)
    heir = _request("heir", range(12))
    kv.acquire_prefix(heir)
    assert len(heir.block_ids) == 2, "the end of the chain goes first, so its beginning is still of use"
    kv.check_integrity([filler, heir])


def test_without_prefix_caching_nothing_is_found(pool: BlockPool) -> None:
    kv = KvCache(pool, BLOCK_SIZE, "some-model", enable_prefix_caching=False)
    first, second = _request("first", range(12)), _request("second", range(12))
    _compute(kv, first, 12)
    kv.acquire_prefix(second)
    assert second.block_ids == []
    kv.forget(first)
    assert pool.num_empty_blocks == 10
