"""Compiles every kernel for compute capability 9.0 on a machine without a GPU, at the shapes of Llama-3.1-8B.

Prints one JSON line a kernel: its name, the 16-byte accesses to device memory in its code, and its shared memory.
Run as a program: a test process that interprets Triton can't compile in it too.
"""

import json

import torch
import triton.runtime
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

    def report(self: JITFunction, *args: object, warmup: bool, **options: object) -> None:
        kernel = launch(self, *args, warmup=True, **options)
        ptx = kernel.asm["ptx"]
        wide = sum(ptx.count(access) for access in WIDE_ACCESSES)
        assert "cubin" in kernel.asm
        print(json.dumps({"name": self.fn.__name__, "wide": wide, "shared": kernel.metadata.shared}), flush=True)

    JITFunction.run = report
    triton.runtime.driver.set_active(HopperWithoutDevice())


class Tables:
    """Four adapters of up to 64 ranks; only shapes and types matter here."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.pool = torch.empty(1024, dtype=dtype)
        self.a_offsets = self.b_offsets = torch.zeros(4, 32, 7, 4, dtype=torch.int64)
        self.lora_ranks = torch.zeros(4, 32, 7, dtype=torch.int32)
        self.scalings = torch.zeros(4, 32, 7)
        self.rank_tile = 16


def lora(dtype: torch.dtype, segment_size: int) -> None:
    tables, group = Tables(dtype), kernels.ProjectionGroup(0, (4096, 1024, 1024))
    segments = kernels.LoraSegments(
        torch.zeros(64, dtype=torch.int64),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(8, dtype=torch.int32),
        torch.zeros(8, dtype=torch.int64),
        segment_size,
    )
    partials = kernels.lora_shrink(torch.empty(64, 4096, dtype=dtype), tables, 3, group, segments)
    kernels.lora_expand(partials, tables, 3, group, segments, torch.empty(64, 6144, dtype=dtype))


def attention(dtype: torch.dtype, head_dim: int) -> None:
    pool = torch.empty((8, 2, 2, 16, 8, head_dim), dtype=dtype)
    caches = pool[:, 1, 0], pool[:, 1, 1]
    starts, seq_lens = (torch.zeros(count, dtype=torch.int32) for count in (9, 8))
    tables = torch.zeros(8, 64, dtype=torch.int32)
    q = torch.empty(40, 48, head_dim, dtype=dtype)[:, :32]
    kernels.paged_attention(q, *caches, tables, starts, seq_lens, 0.1, 9, 1024)


def the_rest(dtype: torch.dtype) -> None:
    x, weight = torch.empty(64, 4096, dtype=dtype), torch.empty(4096, dtype=dtype)
    longs = torch.zeros(64, dtype=torch.int64)
    qkv = torch.empty(64, 48, 128, dtype=dtype)
    pool = torch.empty(8, 2, 2, 16, 8, 128, dtype=dtype)
    kernels.rms_norm(x, weight, 1e-5)
    kernels.rms_norm(qkv[:, :32], weight[:128], 1e-5)
    kernels.add_rms_norm(x, x.clone(), weight, 1e-5)
    kernels.silu_mul(torch.empty(64, 28672, dtype=dtype))
    kernels.rotary(qkv[:, :32], qkv[:, 32:40], longs, torch.empty(4096, 128))
    kernels.kv_write(qkv[:, 32:40], qkv[:, 40:], pool[:, 1, 0], pool[:, 1, 1], longs)
    kernels.sample(torch.empty(64, 128256, dtype=dtype), torch.empty(64), longs, longs)


def main() -> None:
    compile_instead_of_launch()
    the_rest(torch.bfloat16)
    lora(torch.bfloat16, 16)
    lora(torch.bfloat16, 64)
    attention(torch.bfloat16, 128)
    attention(torch.float32, 128)


if __name__ == "__main__":
    main()
