"""The tensors of one step, gathered from the request rows. Dies with the step."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from descant_engine.forward_context import AttentionInputs
from descant_engine.runner.request_states import RequestStates
from descant_engine.runner.transfer import to_device
from descant_engine.scheduler.plan import ScheduledRequest


@dataclass(frozen=True, slots=True)
class InputBatch:
    input_ids: Tensor
    """[num_tokens] int64"""
    positions: Tensor
    """[num_tokens] int64"""
    token_adapter_slot: Tensor
    """[num_tokens] int32; -1 = base"""
    slots_in_batch: tuple[int, ...]
    attention: AttentionInputs
    logits_indices: Tensor
    """[num_samples] int64: the tokens whose logits give a sample"""
    sample_rows: Tensor
    """[num_samples] int64: batch order -> request row"""
    sample_positions: Tensor
    """[num_samples] int64: the position that the sampled token will have"""
    sample_request_ids: tuple[str, ...]
    sample_row_ids: tuple[int, ...]
    """`sample_rows` on the host"""
    host_positions: tuple[int, ...]
    """`sample_positions` on the host"""


def gather(scheduled: tuple[ScheduledRequest, ...], states: RequestStates, block_size: int) -> InputBatch:
    """Only lengths and row numbers travel from the host; the tokens and block tables are on the device already."""
    rows, computed, query_lens = (
        np.array([states.row(r.request_id) for r in scheduled], dtype=np.int64),
        np.array([r.num_computed_tokens for r in scheduled], dtype=np.int64),
        np.array([r.num_scheduled_tokens for r in scheduled], dtype=np.int64),
    )
    query_start = np.concatenate([[0], np.cumsum(query_lens)])
    token_request = np.repeat(np.arange(len(scheduled)), query_lens)
    positions_np = np.arange(query_start[-1]) - query_start[token_request] + computed[token_request]
    samples = np.array([r.samples for r in scheduled])
    seq_lens = computed + query_lens

    on_device = to_device(np.concatenate([rows[token_request], positions_np]), states.device)
    token_rows, positions = on_device.split(len(positions_np))
    blocks = states.block_tables[token_rows, positions // block_size].to(torch.int64)
    per_request = to_device(np.stack([rows, seq_lens]), states.device)
    per_sample = to_device(np.stack([query_start[1:][samples] - 1, rows[samples], seq_lens[samples]]), states.device)
    return InputBatch(
        input_ids=states.token_ids[token_rows, positions],
        positions=positions,
        token_adapter_slot=states.adapter_slots[token_rows],
        slots_in_batch=tuple(sorted({states.adapter_slot(r.request_id) for r in scheduled} - {-1})),
        attention=AttentionInputs(
            query_start_loc=to_device(query_start.astype(np.int32), states.device),
            seq_lens=per_request[1].to(torch.int32),
            block_tables=states.block_tables[per_request[0], : -(-int(seq_lens.max()) // block_size)],
            slot_mapping=blocks * block_size + positions % block_size,
            max_query_len=int(query_lens.max()),
            max_seq_len=int(seq_lens.max()),
        ),
        logits_indices=per_sample[0],
        sample_rows=per_sample[1],
        sample_positions=per_sample[2],
        sample_request_ids=tuple(r.request_id for r in scheduled if r.samples),
        sample_row_ids=tuple(rows[samples].tolist()),
        host_positions=tuple(seq_lens[samples].tolist()),
    )
