"""Time every kernel on a GPU at the shapes of Llama-3.1-8B in bfloat16, against the least time that the chip allows.

    PYTHONPATH=packages/kernels/src python scripts/gpu_kernels.py [part of a case's name ...]

Each case is captured in a CUDA graph that goes round enough copies of its inputs to leave the L2 cache, so neither the
host nor the cache flatters it. Printed: microseconds a call (median of the replays), GB/s and TFLOP/s by what the
formula must read, write and multiply, and measured time over the floor (1.0 = nothing left to gain; launches are not
in the floor, so a small call can't come near it).
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from descant_kernels import (
    ProjectionGroup,
    add_rms_norm,
    kv_write,
    lora_expand,
    lora_shrink,
    paged_attention,
    rms_norm,
    rotary,
    sample,
    segment_tokens,
    silu_mul,
)

BANDWIDTH = 4.26e12
"""Bytes a second of a large copy on an H200."""
MATRIX_RATE = 790e12
"""bfloat16 operations a second of a large product on an H200."""
WORKING_SET = 160e6
"""Bytes of inputs in one replay: about three times the L2."""
MAX_COPIES = 200
REPLAYS = 15

DEVICE = "cuda"
HIDDEN, INTERMEDIATE, VOCAB = 4096, 14336, 128256
Q_HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
PACKED_HEADS = Q_HEADS + 2 * KV_HEADS
KV_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
"""K and V of one token in one layer."""
RANK, RANK_TILE, NUM_MODULES = 16, 8, 7
GROUPS = {
    "qkv": (HIDDEN, ProjectionGroup(0, (HIDDEN, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM))),
    "o": (HIDDEN, ProjectionGroup(3, (HIDDEN,))),
    "gate_up": (HIDDEN, ProjectionGroup(4, (INTERMEDIATE, INTERMEDIATE))),
    "down": (INTERMEDIATE, ProjectionGroup(6, (HIDDEN,))),
}

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    num_bytes: float
    """Read and written by one call."""
    flops: float
    make_call: Callable[[], Call]
    """A call on a fresh copy of the inputs."""

    @property
    def floor(self) -> float:
        """Seconds."""
        return max(self.num_bytes / BANDWIDTH, self.flops / MATRIX_RATE)


@dataclass(frozen=True)
class Tables:
    """One layer's adapters of equal rank, back to back."""

    pool: Tensor
    a_offsets: Tensor
    b_offsets: Tensor
    lora_ranks: Tensor
    scalings: Tensor
    rank_tile: int


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)


def elementwise_cases(count: int) -> Iterator[Case]:
    weight = random(HIDDEN)
    hidden_bytes = 2 * count * HIDDEN
    yield Case(f"rms_norm {count}", 2 * hidden_bytes, 0, lambda: partial(rms_norm, random(count, HIDDEN), weight, 1e-5))
    yield Case(
        f"add_rms_norm {count}",
        4 * hidden_bytes,
        0,
        lambda: partial(add_rms_norm, random(count, HIDDEN), random(count, HIDDEN), weight, 1e-5),
    )
    yield Case(
        f"silu_mul {count}", 6 * count * INTERMEDIATE, 0, lambda: partial(silu_mul, random(count, 2 * INTERMEDIATE))
    )
    rotary_bytes = 4 * count * (Q_HEADS + KV_HEADS) * HEAD_DIM
    yield Case(f"rotary {count}", rotary_bytes, 0, lambda: rotary_call(count))
    yield Case(f"kv_write {count}", 2 * count * KV_BYTES, 0, lambda: kv_write_call(count))


def rotary_call(count: int) -> Call:
    packed = random(count, PACKED_HEADS, HEAD_DIM)
    cos_sin = torch.rand(8192, HEAD_DIM, device=DEVICE)
    return partial(
        rotary, packed[:, :Q_HEADS], packed[:, Q_HEADS:-KV_HEADS], torch.arange(count, device=DEVICE), cos_sin
    )


def kv_write_call(count: int) -> Call:
    packed = random(count, PACKED_HEADS, HEAD_DIM)
    caches = kv_caches(-(-count // BLOCK_SIZE))
    slots = torch.randperm(caches[0].shape[0] * BLOCK_SIZE, device=DEVICE)[:count]
    return partial(kv_write, packed[:, Q_HEADS:-KV_HEADS], packed[:, -KV_HEADS:], *caches, slots)


def kv_caches(num_blocks: int) -> tuple[Tensor, Tensor]:
    """One layer of a block-major pool of two."""
    pool = random(num_blocks, 2, 2, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    return pool[:, 1, 0], pool[:, 1, 1]


def attention_case(num_requests: int, query_len: int, seq_len: int) -> Case:
    tokens = num_requests * query_len
    pairs = tokens * (seq_len - (query_len - 1) / 2)
    num_bytes = num_requests * seq_len * KV_BYTES + 4 * tokens * Q_HEADS * HEAD_DIM
    kind = "decode" if query_len == 1 else "prefill"
    return Case(
        f"attention {kind} {num_requests} x {query_len} of {seq_len}",
        num_bytes,
        4 * Q_HEADS * HEAD_DIM * pairs,
        lambda: attention_call(num_requests, query_len, seq_len),
    )


def attention_call(num_requests: int, query_len: int, seq_len: int) -> Call:
    blocks_each = -(-seq_len // BLOCK_SIZE)
    caches = kv_caches(num_requests * blocks_each)
    tables = torch.randperm(num_requests * blocks_each, device=DEVICE).int().view(num_requests, blocks_each)
    starts = torch.arange(num_requests + 1, dtype=torch.int32, device=DEVICE) * query_len
    seq_lens = torch.full((num_requests,), seq_len, dtype=torch.int32, device=DEVICE)
    q = random(num_requests * query_len, PACKED_HEADS, HEAD_DIM)[:, :Q_HEADS]
    return partial(paged_attention, q, *caches, tables, starts, seq_lens, HEAD_DIM**-0.5, query_len, seq_len)


def torch_attention_case(num_tokens: int) -> Case:
    """What torch ships, on contiguous keys and values: the peer of the prefill kernel."""

    def make_call() -> Call:
        q, k, v = (random(1, heads, num_tokens, HEAD_DIM) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
        return partial(scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True)

    ours = attention_case(1, num_tokens, num_tokens)
    return Case(f"attention torch 1 x {num_tokens}", ours.num_bytes, ours.flops, make_call)


def lora_cases(num_tokens: int, num_adapters: int, segment_size: int) -> Iterator[Case]:
    slots = (torch.arange(num_tokens, device=DEVICE) % num_adapters).int()
    label = f"{num_tokens} tokens, {num_adapters} adapters, segments of {segment_size}"
    cut = partial(segment_tokens, slots, max_slots=min(num_tokens, num_adapters), segment_size=segment_size)
    yield Case(f"segment_tokens: {label}", 12 * num_tokens, 0, lambda: cut)
    segments = cut()
    for name, (in_features, group) in GROUPS.items():
        rank_sum, width = RANK * len(group.out_features), sum(group.out_features)
        weight_rows = num_adapters * RANK * 2
        partial_bytes = 4 * num_tokens * rank_sum

        def shrink_call(in_features: int = in_features, group: ProjectionGroup = group) -> Call:
            tables = lora_tables(num_adapters, in_features, group)
            return partial(lora_shrink, random(num_tokens, in_features), tables, 0, group, segments)

        def expand_call(in_features: int = in_features, group: ProjectionGroup = group, width: int = width) -> Call:
            tables = lora_tables(num_adapters, in_features, group)
            partials = lora_shrink(random(num_tokens, in_features), tables, 0, group, segments)
            return partial(lora_expand, partials, tables, 0, group, segments, random(num_tokens, width))

        shrink_bytes = (
            weight_rows * in_features * len(group.out_features) + 2 * num_tokens * in_features + partial_bytes
        )
        expand_bytes = weight_rows * width + 4 * num_tokens * width + partial_bytes
        shrink_flops, expand_flops = 2 * num_tokens * rank_sum * in_features, 2 * num_tokens * RANK * width
        yield Case(f"lora_shrink {name}: {label}", shrink_bytes, shrink_flops, shrink_call)
        yield Case(f"lora_expand {name}: {label}", expand_bytes, expand_flops, expand_call)


def lora_tables(num_adapters: int, in_features: int, group: ProjectionGroup) -> Tables:
    num_tiles = RANK // RANK_TILE
    entries = (num_adapters, 1, NUM_MODULES)
    offsets = torch.zeros((2, *entries, num_tiles), dtype=torch.int64)
    used = 0
    for slot in range(num_adapters):
        for index, out_features in enumerate(group.out_features):
            for side, width in enumerate((in_features, out_features)):
                for tile in range(num_tiles):
                    offsets[side, slot, 0, group.first_module + index, tile] = used
                    used += RANK_TILE * width
    return Tables(
        pool=random(used) * 0.01,
        a_offsets=offsets[0].to(DEVICE),
        b_offsets=offsets[1].to(DEVICE),
        lora_ranks=torch.full(entries, RANK, dtype=torch.int32, device=DEVICE),
        scalings=torch.ones(entries, device=DEVICE),
        rank_tile=RANK_TILE,
    )


def sample_case(num_rows: int) -> Case:
    def make_call() -> Call:
        temperatures = torch.full((num_rows,), 0.7, device=DEVICE)
        seeds = torch.arange(num_rows, device=DEVICE)
        return partial(sample, random(num_rows, VOCAB), temperatures, seeds, seeds)

    return Case(f"sample {num_rows}", 2 * num_rows * VOCAB, 0, make_call)


def all_cases() -> Iterator[Case]:
    for count in (1, 8, 64, 256, 2048, 8192):
        yield from elementwise_cases(count)
    for num_requests in (1, 8, 64, 256):
        yield attention_case(num_requests, 1, 512)
    for num_requests, seq_len in ((1, 8192), (1, 131072), (64, 4096)):
        yield attention_case(num_requests, 1, seq_len)
    for num_tokens in (2048, 8192):
        yield attention_case(1, num_tokens, num_tokens)
        yield torch_attention_case(num_tokens)
    yield attention_case(16, 512, 512)
    yield attention_case(1, 2048, 16384)
    for num_tokens, num_adapters, segment_size in (
        (1, 1, 16),
        (64, 64, 16),
        (256, 64, 16),
        (256, 256, 16),
        (2048, 1, 16),
        (2048, 1, 64),
        (2048, 1, 128),
        (8192, 16, 64),
    ):
        yield from lora_cases(num_tokens, num_adapters, segment_size)
    for num_rows in (1, 8, 64, 256):
        yield sample_case(num_rows)


def seconds_per_call(case: Case) -> float:
    copies = int(min(MAX_COPIES, max(1, WORKING_SET // case.num_bytes)))
    calls = [case.make_call() for _ in range(copies)]
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / copies)
    return statistics.median(times)


def main(wanted: list[str]) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'case':64s} {'us':>9s} {'GB/s':>7s} {'TFLOP/s':>8s} {'x floor':>8s}")
    for case in all_cases():
        if wanted and not any(part in case.name for part in wanted):
            continue
        seconds = seconds_per_call(case)
        rates = f"{case.num_bytes / seconds / 1e9:7.0f} {case.flops / seconds / 1e12:8.1f}"
        print(f"{case.name:64s} {seconds * 1e6:9.1f} {rates} {seconds / case.floor:8.2f}", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
