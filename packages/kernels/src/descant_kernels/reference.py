"""What each kernel means, in plain torch of float32 or wider: the oracle of the tests. Same names, same signatures."""

import torch
from torch import Tensor

from descant_kernels.decode_inputs import DecodeInputs, RequestRows
from descant_kernels.lora_segments import LoraSegments
from descant_kernels.lora_tables import LoraTables, ProjectionGroup
from descant_kernels.tuning import SAMPLE_LANE

MASK_32 = 0xFFFFFFFF


def kv_write(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    block_size = key_cache.shape[1]
    kept = slot_mapping >= 0
    slots = slot_mapping[kept]
    key_cache[slots // block_size, slots % block_size] = keys[kept]
    value_cache[slots // block_size, slots % block_size] = values[kept]


def decode_inputs(
    rows: Tensor, positions: Tensor, requests: RequestRows, block_size: int, padding_row: int
) -> DecodeInputs:
    block_tables = requests.block_tables[rows]
    blocks = block_tables.gather(1, (positions // block_size).unsqueeze(1)).squeeze(1).long()
    return DecodeInputs(
        input_ids=requests.token_ids[rows, positions],
        seq_lens=(positions + 1).int(),
        slot_mapping=torch.where(rows == padding_row, -1, blocks * block_size + positions % block_size),
        block_tables=block_tables,
        adapter_slots=requests.adapter_slots[rows],
    )


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
) -> Tensor:
    out = torch.zeros_like(q)
    bounds = query_start_loc.tolist()
    for request, seq_len in enumerate(seq_lens.tolist()):
        start, end = bounds[request], bounds[request + 1]
        if start == end or seq_len == 0:
            continue
        num_blocks = -(-seq_len // key_cache.shape[1])
        blocks = block_tables[request, :num_blocks].long()
        keys = key_cache[blocks].flatten(0, 1)[:seq_len]
        values = value_cache[blocks].flatten(0, 1)[:seq_len]
        out[start:end] = _attend(q[start:end], keys, values, scale).to(q.dtype)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """q [queries, heads, dim] are the last queries of keys and values [tokens, kv_heads, dim]."""
    group_size = q.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group_size, dim=1).double()
    values = values.repeat_interleave(group_size, dim=1).double()
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    visible = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(keys.shape[0] - q.shape[0])
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float().sum(0) if x.dim() == 4 else x.float()
    return (weight.float() * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    residual.copy_(residual.float() + (x.float().sum(0) if x.dim() == 3 else x.float()))
    return rms_norm(residual, weight, eps), residual


def skinny_product(x: Tensor, weight: Tensor, splits: int, out: Tensor | None = None) -> Tensor:
    parts = [a.float() @ b.float().T for a, b in zip(x.chunk(splits, 1), weight.chunk(splits, 1), strict=True)]
    sums = torch.stack(parts).to(x.dtype if splits == 1 else torch.float32)
    return sums if out is None else out.copy_(sums)


def invariant_product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    product = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return product if out is None else out.copy_(product)


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def rotary_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    if q.dim() == 4:
        for heads in (q, k, v):
            heads[0] = heads.float().sum(0)
        q, k, v = q[0], k[0], v[0]
    rotary(q, k, positions, cos_sin_cache)
    kv_write(k, v, key_cache, value_cache, slot_mapping)


def rotary(q: Tensor, k: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> None:
    cos, sin = cos_sin_cache[positions].unsqueeze(1).chunk(2, dim=-1)
    for heads in (q, k):
        first, second = heads.float().chunk(2, dim=-1)
        heads.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


def silu_mul(gate_up: Tensor) -> Tensor:
    whole = gate_up.float().sum(0) if gate_up.dim() == 3 else gate_up.float()
    gate, up = whole.chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


def segment_tokens(
    token_adapter_slot: Tensor, max_slots: int | None = None, segment_size: int = 16
) -> list[tuple[int, list[int]]]:
    """The segments as (slot, tokens), in their order."""
    slots = token_adapter_slot.tolist()
    segments = []
    for slot in sorted(set(slots)):
        tokens = [token for token, owner in enumerate(slots) if owner == slot]
        segments += [(slot, tokens[i : i + segment_size]) for i in range(0, len(tokens), segment_size)]
    return segments


def lora_shrink(x: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments) -> Tensor:
    max_rank = tables.a_offsets.shape[-1] * tables.rank_tile
    partials = x.new_zeros((1, len(group.out_features), x.shape[0], max_rank), dtype=torch.float32)
    for slot, tokens in _adapter_segments(segments):
        for index in range(len(group.out_features)):
            lora_a = rank_rows(tables, tables.a_offsets, (slot, layer, group.first_module + index), x.shape[1])
            partials[0, index, tokens, : lora_a.shape[0]] = x[tokens].float() @ lora_a.float().T
    return partials


def lora_expand(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, out: Tensor
) -> None:
    out.zero_()
    for slot, tokens in _adapter_segments(segments):
        for index, columns in enumerate(out.split(group.out_features, dim=1)):
            entry = (slot, layer, group.first_module + index)
            lora_b = rank_rows(tables, tables.b_offsets, entry, columns.shape[1])
            shrunk = partials[:, index, tokens, : lora_b.shape[0]].sum(0)
            columns[tokens] = (tables.scalings[entry] * (shrunk @ lora_b.float())).to(out.dtype)


def lora_expand_silu_mul(
    partials: Tensor, tables: LoraTables, layer: int, group: ProjectionGroup, segments: LoraSegments, gate_up: Tensor
) -> Tensor:
    update = torch.empty(gate_up.shape, dtype=torch.float32, device=gate_up.device)
    lora_expand(partials, tables, layer, group, segments, update)
    return silu_mul(gate_up.float() + update).to(gate_up.dtype)


def _adapter_segments(segments: LoraSegments) -> list[tuple[int, Tensor]]:
    bounds = zip(segments.slots.tolist(), segments.starts.tolist(), segments.lengths.tolist(), strict=True)
    return [
        (slot, segments.token_order[start : start + length]) for slot, start, length in bounds if length and slot >= 0
    ]


def rank_rows(tables: LoraTables, offsets: Tensor, entry: tuple[int, int, int], width: int) -> Tensor:
    """[rank, width]: the tiles of one adapted layer, put together."""
    rank = int(tables.lora_ranks[entry])
    rows = [tables.pool.new_empty((0, width))]
    for tile, first in enumerate(range(0, rank, tables.rank_tile)):
        height = min(tables.rank_tile, rank - first)
        offset = int(offsets[entry][tile])
        rows.append(tables.pool[offset : offset + height * width].view(height, width))
    return torch.cat(rows)


def sample(logits: Tensor, temperatures: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    scores = logits.float()
    noise = _noise(seeds, positions, logits.shape[1])
    is_greedy = temperatures == 0
    safe = torch.where(is_greedy, 1.0, temperatures).unsqueeze(1)
    return torch.where(is_greedy.unsqueeze(1), scores, scores / safe + noise).argmax(-1)


def truncate(logits: Tensor, rows: Tensor, temperatures: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> None:
    vocab_size = logits.shape[1]
    scores = logits[rows].double() / temperatures.double().unsqueeze(1)
    scores[scores < scores.amax(1, keepdim=True) + min_p.double().unsqueeze(1).log()] = -torch.inf
    descending = scores.sort(dim=1, descending=True).values
    kth = torch.where(top_k == 0, vocab_size, top_k).clamp(max=vocab_size) - 1
    scores[scores < descending.gather(1, kth.unsqueeze(1))] = -torch.inf
    descending = scores.sort(dim=1, descending=True).values
    shares = descending.softmax(1)
    # A token is kept if those before it have not reached top_p.
    num_kept = (shares.cumsum(1) - shares < top_p.double().unsqueeze(1)).sum(1, keepdim=True)
    last = descending.gather(1, num_kept.clamp(min=1) - 1).masked_fill(top_p.unsqueeze(1) >= 1, -torch.inf)
    scores[scores < last] = -torch.inf
    logits[rows] = logits[rows].masked_fill(scores == -torch.inf, -torch.inf)


def _noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Token v takes word (v // lane) % 4 of the Philox block whose counter is (v without those two bits, position)."""
    token = torch.arange(vocab_size, device=seeds.device)
    counter = token // (4 * SAMPLE_LANE) * SAMPLE_LANE + token % SAMPLE_LANE
    word = token // SAMPLE_LANE % 4
    words = philox(seeds.unsqueeze(1), counter.unsqueeze(0), positions.unsqueeze(1))
    bits = words.gather(-1, word.expand(words.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return gumbel(bits)


def gumbel(bits: Tensor) -> Tensor:
    """A draw from the standard Gumbel distribution for each unsigned word, given as int64."""
    u = ((bits.float() + 0.5) / 2**32).clamp(max=1 - 2**-24)
    return -torch.log(-torch.log1p(-u))


def apply_token_bitmask(logits: Tensor, rows: Tensor, words: Tensor) -> None:
    token = torch.arange(logits.shape[1], device=logits.device)
    is_allowed = (words[:, token // 32] >> (token % 32)) & 1
    logits[rows] = logits[rows].masked_fill(is_allowed == 0, -torch.inf)


def philox(key: Tensor, counter_0: Tensor, counter_1: Tensor) -> Tensor:
    """Philox4x32-10 of the 128-bit counter (counter_0, counter_1, 0, 0): [..., 4] int64 holding unsigned words."""
    c0, c1 = torch.broadcast_tensors(counter_0 & MASK_32, counter_1 & MASK_32)
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = key & MASK_32, (key >> 32) & MASK_32
    for _ in range(10):
        high_0, low_0 = _multiply(0xD2511F53, c0)
        high_1, low_1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) & MASK_32, (k1 + 0xBB67AE85) & MASK_32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product of two words, without leaving int64's range."""
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
