"""How many blocks fit, and the one tensor that holds them: KV cache and adapters alike."""

import math
import mmap

import torch
from torch import Tensor

from descant_engine.config import ModelShape, ResolvedConfig
from descant_engine.forward_context import AttentionInputs, LayerKv, StepContext, step_context
from descant_engine.models.llama import LlamaForCausalLM


class OutOfMemory(ValueError):
    """The pool would be too small to serve one request of the promised length."""


def profile_num_blocks(
    model: LlamaForCausalLM, config: ResolvedConfig, device: torch.device, *, draft_block_bytes: int = 0
) -> int:
    """The number of blocks that fit beside the weights and the activations of the largest step, each with so many bytes
    of a draft model's.

    Raises:
        OutOfMemory: not even one request of max_model_len tokens would fit; the message has the numbers.
    """
    block_bytes = config.block_bytes + draft_block_bytes
    if config.user.num_blocks is not None:
        return config.user.num_blocks
    num_blocks = _bytes_for_pool(model, config, device) // block_bytes
    needed = -(-config.max_model_len // config.user.block_size)
    if num_blocks < needed:
        raise OutOfMemory(
            f"one request of max_model_len={config.max_model_len} tokens needs {needed} blocks of "
            f"{block_bytes / 2**20:.1f} MiB, but only {max(num_blocks, 0)} fit; lower max_model_len to "
            f"{max(num_blocks, 0) * config.user.block_size} or less, or give the pool more memory "
            "(gpu_memory_utilization, or cpu_pool_bytes on the CPU)"
        )
    return num_blocks


def allocate_pool(config: ResolvedConfig, num_blocks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[num_blocks, block_elements]; block-major: a block holds its tokens' K and V of every layer, contiguous."""
    # Zeros, not empty: a masked-out slot is multiplied by 0, and 0 * NaN is NaN.
    shape = (num_blocks, config.block_elements)
    return _zero_pages(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)


def _zero_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that the system makes page by page, where something is first written: to write them all takes a start half
    a second for each GiB, most of which is seldom used."""
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def kv_caches(pool: Tensor, shape: ModelShape, block_size: int) -> tuple[LayerKv, ...]:
    """The pool seen as every layer's K and V: strided views, no copy."""
    view = pool.view(-1, shape.num_layers, 2, block_size, shape.num_kv_heads, shape.head_dim)
    return tuple(LayerKv(view[:, layer, 0], view[:, layer, 1]) for layer in range(shape.num_layers))


def _bytes_for_pool(model: LlamaForCausalLM, config: ResolvedConfig, device: torch.device) -> int:
    if device.type == "cpu":
        return config.user.cpu_pool_bytes
    torch.cuda.reset_peak_memory_stats(device)
    _run_largest_step(model, config, device)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    elsewhere = total - free - torch.cuda.memory_reserved(device)
    return int(total * config.user.gpu_memory_utilization) - peak - max(elsewhere, 0)


@torch.inference_mode()
def _run_largest_step(model: LlamaForCausalLM, config: ResolvedConfig, device: torch.device) -> None:
    num_tokens = min(config.max_num_batched_tokens, config.max_model_len)
    dtype = next(model.parameters()).dtype
    pool = allocate_pool(config, 1, dtype, device)
    attention = AttentionInputs(
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        block_tables=torch.zeros(1, -(-num_tokens // config.user.block_size), dtype=torch.int32, device=device),
        slot_mapping=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
    )
    ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
    positions = torch.arange(num_tokens, device=device)
    caches = kv_caches(pool, config.shape, config.user.block_size)
    with step_context(StepContext(caches, attention, lora=None)):
        hidden = model(ids, positions)
        model.compute_logits(hidden[: min(config.max_num_seqs, num_tokens)]).float()
