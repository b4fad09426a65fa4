"""Milliseconds per engine step on the CPU, model and logits only: decode of 1 and 8 requests with and without three
adapters, and a prefill of 512 tokens; transformers beside it.

    python scripts/cpu_step_time.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from descant_engine.adapters.manifest import TargetModule
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig, ModelShape, ResolvedConfig
from descant_engine.forward_context import (
    AttentionInputs,
    LayerKv,
    LoraInputs,
    LoraTables,
    StepContext,
    step_context,
)
from descant_engine.models import attach_lora, load_model
from descant_engine.models.llama import LlamaForCausalLM

BLOCK_SIZE = 16
CONTEXT = 200
"""Tokens that a decoding request has in its cache."""
ADAPTERS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (8, ("q_proj", "v_proj")),
    (16, ("q_proj", "k_proj", "v_proj", "o_proj")),
    (4, tuple(module.name.lower() for module in TargetModule)),
)
"""(rank, modules) of the three adapters: the shapes that `make up` serves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    config = resolve(EngineConfig(model=arguments.model, dtype=arguments.dtype, device="cpu"))
    model = load_model(config)
    attach_lora(model)
    pool, tables = pool_with_adapters(config)
    caches = kv_views(pool, config.shape)
    with torch.inference_mode():
        for num_requests in (1, 8):
            for lora in (None, tables):
                step = decode_step(model, caches, num_requests, lora)
                report(f"decode, {num_requests} requests, {'3 adapters' if lora else 'base'}", step, arguments.repeats)
        report("prefill of 512 tokens", prefill_step(model, caches, 512), max(arguments.repeats // 10, 3))
        peer = peer_model(arguments.model, arguments.dtype)
        report("transformers: decode, 1 request", peer_decode(peer), arguments.repeats)
        report("transformers: prefill of 512", lambda: peer(random_ids(512)[None]), max(arguments.repeats // 10, 3))


def report(name: str, step: Callable[[], object], repeats: int) -> None:
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append((time.perf_counter() - began) * 1e3)
    print(f"{name:36s} {statistics.median(times):8.2f} ms   (best {min(times):.2f})", flush=True)


def decode_step(
    model: LlamaForCausalLM, caches: tuple[LayerKv, ...], num_requests: int, tables: LoraTables | None
) -> Callable[[], object]:
    return lambda: forward(model, caches, [1] * num_requests, [CONTEXT] * num_requests, tables)


def prefill_step(model: LlamaForCausalLM, caches: tuple[LayerKv, ...], num_tokens: int) -> Callable[[], object]:
    return lambda: forward(model, caches, [num_tokens], [num_tokens], None)


def forward(
    model: LlamaForCausalLM,
    caches: tuple[LayerKv, ...],
    query_lens: list[int],
    seq_lens: list[int],
    tables: LoraTables | None,
) -> Tensor:
    blocks_each = -(-max(seq_lens) // BLOCK_SIZE)
    block_tables = torch.arange(len(seq_lens) * blocks_each, dtype=torch.int32).view(-1, blocks_each)
    positions = torch.cat([torch.arange(s - q, s) for q, s in zip(query_lens, seq_lens, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(seq_lens)), torch.tensor(query_lens))
    slots = block_tables[owner, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    attention = AttentionInputs(
        query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).int(),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=block_tables,
        slot_mapping=slots,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )
    lora = None
    if tables is not None:
        adapters = (owner % len(ADAPTERS)).int()
        lora = LoraInputs(tables, adapters, frozenset(TargetModule))
    with step_context(StepContext(caches, attention, lora)):
        hidden = model(random_ids(len(positions)), positions)
        return model.compute_logits(hidden[attention.query_start_loc[1:] - 1])


def pool_with_adapters(config: ResolvedConfig) -> tuple[Tensor, LoraTables]:
    """256 blocks, the last half with random adapters."""
    shape, dtype = config.shape, getattr(torch, config.dtype)
    pool = torch.randn(256, config.block_elements, dtype=dtype) * 0.01
    dimensions = (len(ADAPTERS), shape.num_layers, len(TargetModule))
    ranks = torch.zeros(dimensions, dtype=torch.int32)
    offsets = torch.zeros(2, *dimensions, 1, dtype=torch.int64)
    free = pool.numel() // 2
    for slot, (lora_rank, modules) in enumerate(ADAPTERS):
        for layer in range(shape.num_layers):
            for module in (TargetModule[name.upper()] for name in modules):
                ranks[slot, layer, module] = lora_rank
                for matrix, width in enumerate(shape.linear_shape(module)):
                    offsets[matrix, slot, layer, module, 0] = free
                    free += lora_rank * width
    assert free <= pool.numel()
    return pool, LoraTables(pool.view(-1), offsets[0], offsets[1], ranks, torch.full(dimensions, 2.0), rank_tile=16)


def kv_views(pool: Tensor, shape: ModelShape) -> tuple[LayerKv, ...]:
    view = pool.view(-1, shape.num_layers, 2, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    return tuple(LayerKv(view[:, layer, 0], view[:, layer, 1]) for layer in range(shape.num_layers))


def peer_model(model: str, dtype: str) -> PreTrainedModel:
    path = Path(model)
    peer: PreTrainedModel
    if path.suffix == ".gguf":
        # Read in float32 first: then transformers dequantises, as we do, and its products are torch's.
        peer = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    else:
        peer = AutoModelForCausalLM.from_pretrained(path)
    return peer.to(getattr(torch, dtype)).eval()


def peer_decode(peer: PreTrainedModel) -> Callable[[], object]:
    cache = DynamicCache(config=peer.config)
    peer(random_ids(CONTEXT)[None], past_key_values=cache, logits_to_keep=1)
    return lambda: peer(random_ids(1)[None], past_key_values=cache, logits_to_keep=1)


def random_ids(num_tokens: int) -> Tensor:
    return torch.randint(0, 1000, (num_tokens,))


if __name__ == "__main__":
    main()
