"""Compiles every kernel for compute capability 9.0 on a machine without a GPU, at the shapes of Llama-3.1-8B.

Prints one JSON line per compiled kernel: its name, the 16-byte accesses to device memory in its code, and its
shared memory. What a line "again" follows was compiled anew for another number of tokens.
Run as a program: a test process that interprets Triton can't compile in it too.
"""

import itertools
import json

import torch
import triton.runtime
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import descant_kernels as kernels

WIDE_ACCESSES = ("cp.async.cg.shared.global", "ld.global.v4", "ld.global.L1::evict_last.v4", "st.global.v4")


class HopperWithoutDevice:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_instead_of_launch() -> None:
    launch = JITFunction.run
    compiled = []

    def report(self: JITFunction, *args: object, warmup: bool, **options: object) -> None:
        kernel = launch(self, *args, warmup=True, **options)
        if kernel not in compiled:
            compiled.append(kernel)
            assert "cubin" in kernel.asm
            wide = sum(kernel.asm["ptx"].count(access) for access in WIDE_ACCESSES)
            print(json.dumps({"name": self.fn.__name__, "wide": wide, "shared": kernel.metadata.shared}), flush=True)

    JITFunction.run = report
    triton.runtime.driver.set_active(HopperWithoutDevice())


def step_input(count: int, dtype: torch.dtype) -> Tensor:
    """A slice of a larger buffer, at an odd offset for odd counts."""
    return torch.zeros(count + 1, dtype=dtype)[count % 2 :][:count]


class Tables:
    """Four adapters of up to 64 ranks; only shapes and types matter here."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.pool = torch.empty(1024, dtype=dtype)
        self.a_offsets = self.b_offsets = torch.zeros(4, 32, 7, 4, dtype=torch.int64)
        self.lora_ranks = torch.zeros(4, 32, 7, dtype=torch.int32)
        self.scalings = torch.zeros(4, 32, 7)
        self.rank_tile = 16


def lora(dtype: torch.dtype, segment_size: int, num_tokens: int) -> None:
    tables, group = Tables(dtype), kernels.ProjectionGroup(0, (4096, 1024, 1024))
    segments = kernels.segment_tokens(step_input(num_tokens, torch.int32), segment_size=segment_size)
    partials = kernels.lora_shrink(torch.empty(num_tokens, 4096, dtype=dtype), tables, num_tokens % 32, group, segments)
    pair = kernels.ProjectionGroup(4, (14336, 14336))
    gate_up = torch.empty(num_tokens, 28672, dtype=dtype)
    kernels.lora_expand_silu_mul(partials[:, :2].contiguous(), tables, num_tokens % 32, pair, segments, gate_up)
    kernels.lora_expand(partials, tables, num_tokens % 32, group, segments, torch.empty(num_tokens, 6144, dtype=dtype))


def attention(dtype: torch.dtype, num_tokens: int) -> None:
    num_requests = num_tokens // 32 + 1
    pool = torch.empty((8, 2, 2, 16, 8, 128), dtype=dtype)
    caches = pool[:, 1, 0], pool[:, 1, 1]
    starts, seq_lens = (step_input(count, torch.int32) for count in (num_requests + 1, num_requests))
    tables = torch.zeros(num_requests, num_tokens, dtype=torch.int32)
    q = torch.empty(num_tokens, 48, 128, dtype=dtype)[:, :32]
    kernels.paged_attention(q, *caches, tables, starts, seq_lens, 0.1, num_tokens, max_seq_len=1100)


def the_rest(dtype: torch.dtype, num_tokens: int) -> None:
    x, weight = torch.empty(num_tokens, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
    longs = step_input(num_tokens, torch.int64)
    qkv = torch.empty(num_tokens, 48, 128, dtype=dtype)
    pool = torch.empty(8, 2, 2, 16, 8, 128, dtype=dtype)
    kernels.rms_norm(x, weight, 1e-5)
    kernels.rms_norm(qkv[:, :32], weight[:128], 1e-5)
    kernels.add_rms_norm(x, x.clone(), weight, 1e-5)
    kernels.add_rms_norm(torch.empty(2, num_tokens, 4096), x.clone(), weight, 1e-5)
    kernels.add_rms_norm(torch.empty(3, num_tokens, 4096), x.clone(), weight, 1e-5)
    kernels.add_rms_norm(torch.empty(2, num_tokens, 4096, dtype=dtype), x.clone(), weight, 1e-5)
    for splits, few in itertools.product((1, 2), (16, 32, 64)):
        kernels.skinny_product(x[:few], torch.empty(4096, 4096, dtype=dtype), splits)
        kernels.skinny_product(x[:few], torch.empty(28672, 4096, dtype=dtype), splits)
    kernels.invariant_product(x, torch.empty(6144, 4096, dtype=dtype))
    table = torch.zeros(num_tokens, 70, dtype=torch.int32)
    requests = kernels.RequestRows(torch.zeros(num_tokens, 1025, dtype=torch.int64), table, table[:, 0].contiguous())
    kernels.decode_inputs(longs, longs, requests, 16, 64)
    kernels.greedy(torch.empty(num_tokens, 128256, dtype=dtype))
    kernels.silu_mul(torch.empty(num_tokens, 28672, dtype=dtype))
    kernels.silu_mul(torch.empty(2, num_tokens, 28672, dtype=dtype))
    kernels.rotary(qkv[:, :32], qkv[:, 32:40], longs, torch.empty(4096, 128))
    caches = pool[:, 1, 0], pool[:, 1, 1]
    kernels.rotary_kv_write(*qkv.split((32, 8, 8), 1), longs, torch.empty(4096, 128), *caches, longs)
    two = torch.empty(2, num_tokens, 48, 128, dtype=dtype)
    kernels.rotary_kv_write(*two.split((32, 8, 8), 2), longs, torch.empty(4096, 128), *caches, longs)
    kernels.kv_write(qkv[:, 32:40], qkv[:, 40:], pool[:, 1, 0], pool[:, 1, 1], longs)
    floats = step_input(num_tokens, torch.float32)
    kernels.truncate(torch.empty(num_tokens, 128256), longs, floats, floats, longs, floats)
    kernels.sample(torch.empty(num_tokens, 128256, dtype=dtype), step_input(num_tokens, torch.float32), longs, longs)


def all_kernels(num_tokens: int) -> None:
    the_rest(torch.bfloat16, num_tokens)
    for segment_size in (16, 32):
        lora(torch.bfloat16, segment_size, num_tokens)
    attention(torch.bfloat16, num_tokens)
    attention(torch.float32, num_tokens)


if __name__ == "__main__":
    compile_instead_of_launch()
    all_kernels(64)
    print('"again"')
    for num_tokens in (1, 2, 17, 48):
        all_kernels(num_tokens)
