"""The tiers by themselves; how requests use them is in test_scheduler."""

from pathlib import Path

import pytest

from descant_engine.adapters.manifest import AdapterManifest, ModuleLora, TargetModule
from descant_engine.cache.adapter_cache import AdapterCache, AdapterTier, Readiness
from descant_engine.cache.block_pool import BlockPool, count_holders
from descant_engine.config import EngineConfig, ModelShape, ResolvedConfig, RopeScaling
from descant_engine.scheduler.plan import AdapterEvent, AdapterMove, AdapterMoveKind

SHAPE = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=32,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_q_heads=2,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    max_position=64,
    rope=RopeScaling(kind="default", theta=1e4),
    tie_word_embeddings=True,
)
CONFIG = ResolvedConfig(
    user=EngineConfig(model="m", enable_lora=True, max_lora_rank=160, adapter_host_bytes=10 * 16 * 64 * 4),
    shape=SHAPE,
    dtype="float32",
    device="cpu",
    max_model_len=64,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    eos_token_ids=(2,),
)
NUM_BLOCKS = 12


def _manifest(digest: str, num_blocks: int) -> AdapterManifest:
    """16 ranks of q_proj fill a block of 16 x 64 elements."""
    module = ModuleLora(0, TargetModule.Q_PROJ, 16 * num_blocks, 1.0, "a", "b")
    return AdapterManifest(digest, Path(digest), (module,))


class Cache:
    """An AdapterCache whose moves are over as soon as asked for."""

    def __init__(self, num_slots: int = 4) -> None:
        self.pool = BlockPool(NUM_BLOCKS)
        self.adapters = AdapterCache(CONFIG, self.pool, num_slots)

    def load(self, digest: str, num_blocks: int) -> None:
        self.adapters.register(_manifest(digest, num_blocks))
        for readiness in (Readiness.READING, Readiness.COPYING, Readiness.USABLE):
            assert self.bring(digest) is readiness
            self.finish(*self.adapters.take_moves())

    def bring(self, digest: str, *keep: str) -> Readiness:
        return self.adapters.bring(digest, keep, 0)

    def finish(self, *moves: AdapterMove, error: str | None = None) -> None:
        for move in moves:
            self.adapters.apply(
                AdapterEvent(move.kind, move.manifest.digest, error, f"content of {move.manifest.digest}")
            )
        self.pool.check_integrity(count_holders(list(self.adapters.held_blocks())))

    def tiers(self) -> dict[str, AdapterTier]:
        return {adapter.digest: adapter.tier for adapter in self.adapters.residency()}

    def dropped(self, kind: AdapterMoveKind) -> list[str]:
        return [move.manifest.digest for move in self.adapters.take_moves() if move.kind is kind]


@pytest.fixture
def cache() -> Cache:
    return Cache()


def test_an_adapter_climbs_one_tier_at_a_time(cache: Cache) -> None:
    cache.adapters.register(_manifest("a", 3))
    tiers = [cache.tiers()["a"]]
    moves = []
    for _ in range(2):
        cache.bring("a")
        moves += cache.adapters.take_moves()
        cache.finish(moves[-1])
        tiers.append(cache.tiers()["a"])
    assert tiers == [AdapterTier.REGISTERED, AdapterTier.HOST, AdapterTier.DEVICE]
    assert [move.kind for move in moves] == [AdapterMoveKind.LOAD_HOST, AdapterMoveKind.LOAD_DEVICE]
    assert len(moves[1].block_ids) == 3
    assert cache.pool.num_free_blocks == NUM_BLOCKS - 3


def test_room_is_made_of_the_longest_idle_and_never_of_pinned_or_kept_ones(cache: Cache) -> None:
    for digest in "abc":
        cache.load(digest, 3)
    cache.adapters.add_user("a")
    cache.adapters.pin("a")
    assert cache.adapters.make_room(4, "b")
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == ["c"]
    assert not cache.adapters.make_room(10), "a is pinned"
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == [], "all or nothing"
    assert cache.adapters.make_room(9)
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == ["b"]


def test_an_adapter_that_somebody_waits_for_goes_last(cache: Cache) -> None:
    for digest in "abc":
        cache.load(digest, 3)
    cache.adapters.add_user("a")
    assert cache.adapters.make_room(9)
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == ["b", "c"]
    assert cache.adapters.make_room(12)
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == ["a"]


def test_unpinning_makes_an_adapter_the_warmest(cache: Cache) -> None:
    for digest in "ab":
        cache.load(digest, 5)
    cache.adapters.pin("a")
    cache.adapters.unpin("a")
    assert cache.adapters.make_room(3)
    assert cache.dropped(AdapterMoveKind.DROP_DEVICE) == ["b"]


def test_a_slot_is_needed_as_well_as_blocks() -> None:
    cache = Cache(num_slots=1)
    cache.load("a", 1)
    slot = cache.adapters.pin("a")
    cache.adapters.register(_manifest("b", 1))
    cache.bring("b")
    cache.finish(*cache.adapters.take_moves())
    assert cache.bring("b") is Readiness.NO_SLOT
    cache.adapters.unpin("a")
    cache.adapters.add_user("a")
    assert cache.bring("b") is Readiness.NO_SLOT, "somebody waits for a"
    assert cache.adapters.bring("b", (), 0, evict_wanted=True) is Readiness.COPYING
    assert cache.adapters.take_displaced() == ["a"]
    drop, load = cache.adapters.take_moves()
    assert (drop.kind, drop.slot) == (AdapterMoveKind.DROP_DEVICE, slot)
    assert (load.kind, load.slot) == (AdapterMoveKind.LOAD_DEVICE, slot)


def test_host_memory_gives_way_in_the_same_manner(cache: Cache) -> None:
    for digest in "ab":
        cache.load(digest, 4)
    cache.adapters.register(_manifest("c", 5))
    assert cache.bring("c", "a", "b") is Readiness.NO_HOST_ROOM
    assert cache.bring("c", "a") is Readiness.READING
    assert cache.dropped(AdapterMoveKind.DROP_HOST) == ["b"]
    assert cache.tiers()["b"] is AdapterTier.DEVICE, "the copy in the pool does not need the one in host memory"


def test_what_is_read_once_keeps_its_identity_when_its_copies_are_gone(cache: Cache) -> None:
    cache.load("a", 3)
    assert cache.adapters.content_digest("a") == "content of a"
    assert cache.adapters.make_room(NUM_BLOCKS)
    cache.adapters.register(_manifest("big", 10))
    cache.bring("big")
    cache.adapters.take_moves()
    cache.finish(AdapterMove(AdapterMoveKind.LOAD_HOST, _manifest("big", 10)), error="broken")
    cache.adapters.register(_manifest("a", 3))
    assert cache.bring("a") is Readiness.READING
    assert cache.adapters.take_moves()[-1].manifest.content_digest == "content of a", "it need not be hashed again"
