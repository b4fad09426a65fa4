"""The CPU's operations against their formulas in float64."""

import pytest
import torch
from torch import Tensor

from descant_engine.config import ModelShape, RopeScaling
from descant_engine.forward_context import StepContext, step_context
from descant_engine.layers.cpu_attention import FEW_TOKENS
from descant_engine.layers.cpu_ops import CpuOps
from descant_engine.speculation.config import MAX_DRAFT_TOKENS_ON_CPU

from ..paged_model import BlockPool, Conversation  # noqa: TID252

ERROR_OF = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def shape_with(num_q_heads: int, num_kv_heads: int, head_dim: int) -> ModelShape:
    return ModelShape(
        architecture="LlamaForCausalLM",
        vocab_size=10,
        hidden_size=8,
        intermediate_size=8,
        num_layers=2,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        max_position=100,
        rope=RopeScaling(kind="default", theta=1e4),
        tie_word_embeddings=True,
    )


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Relative to the largest expected value, which is what rounding goes by."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().max() / expected.abs().max()
    assert error < ERROR_OF[got.dtype], f"relative error {error:.2e}"


def random(*size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@DTYPES
@pytest.mark.parametrize("num_tokens", [1, 7, 65])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
def test_product(dtype: torch.dtype, num_tokens: int, with_bias: bool) -> None:
    x, weight = random(num_tokens, 40, dtype=dtype), random(56, 40, dtype=dtype, seed=1)
    bias = random(56, dtype=dtype, seed=2) if with_bias else None
    expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert_near(CpuOps().product(weight, bias)(x), expected)


@DTYPES
@pytest.mark.parametrize(("num_in", "num_out"), [(96, 160), (1536, 64)])
def test_a_row_has_the_same_bits_in_any_company(dtype: torch.dtype, num_in: int, num_out: int) -> None:
    x, product = random(40, num_in, dtype=dtype), CpuOps().product(random(num_out, num_in, dtype=dtype, seed=1), None)
    among_all = product(x)
    for num_rows in (1, 2, 3, 5, 8, 16, 17, 33):
        assert torch.equal(product(x[:num_rows]), among_all[:num_rows]), f"{num_rows} rows"


def test_a_product_in_float16_works_too() -> None:
    x, weight = random(3, 16, dtype=torch.float16), random(8, 16, dtype=torch.float16, seed=1)
    torch.testing.assert_close(
        CpuOps().product(weight, None)(x).double(), x.double() @ weight.double().T, rtol=0.02, atol=0.02
    )


@DTYPES
def test_norms(dtype: torch.dtype) -> None:
    x, residual, weight = (random(*size, dtype=dtype, seed=i) for i, size in enumerate([(5, 48), (5, 48), (48,)]))

    def normed(values: Tensor) -> Tensor:
        values = values.double()
        return values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    assert_near(CpuOps().rms_norm(x, weight, 1e-5), normed(x))
    total = x + residual
    got, got_residual = CpuOps().add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    assert torch.equal(got_residual, total)
    assert_near(got, normed(total))


@DTYPES
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = random(6, 64, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_near(CpuOps().silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)


@DTYPES
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (9, 3), (5, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [16, 64])
def test_attention_of_mixed_batches(dtype: torch.dtype, heads: tuple[int, int], head_dim: int) -> None:
    """Four requests through three steps of prefill, chunks and decode, over a pool that was full of NaN."""
    num_q_heads, num_kv_heads = heads
    shape = shape_with(num_q_heads, num_kv_heads, head_dim)
    pool, ops = BlockPool(shape, dtype=dtype), CpuOps()
    conversations = [Conversation([]) for _ in range(4)]
    history: list[list[Tensor]] = [[] for _ in conversations]
    for step, lengths in enumerate([[6, 1, 13, 4], [1, 9, 1, 1], [1, 1, 1, 1], [3, 1, 8, 1]]):
        total = sum(lengths)
        packed = random(total, num_q_heads + 2 * num_kv_heads, head_dim, dtype=dtype, seed=step)
        q, k, v = packed.split([num_q_heads, num_kv_heads, num_kv_heads], dim=1)
        inputs = pool.attention_inputs(list(zip(conversations, lengths, strict=True)))
        with step_context(StepContext(pool.caches, inputs, None)):
            other = ops.attention(1, q, k, v, head_dim**-0.5)
            output = ops.attention(0, q, k, v, head_dim**-0.5)
        assert torch.equal(other, output), "layers of one step share the plan, and not their K and V"
        for conversation, past, q_part, kv_part, got in zip(
            conversations,
            history,
            q.split(lengths),
            torch.stack([k, v]).split(lengths, dim=1),
            output.split(lengths),
            strict=True,
        ):
            past.append(kv_part)
            assert_near(got, attention(q_part, torch.cat(past, dim=1)))
            conversation.num_computed += len(q_part)


@DTYPES
@pytest.mark.parametrize("num_tokens", [2, 5, MAX_DRAFT_TOKENS_ON_CPU + 1])
@pytest.mark.parametrize("past", [30, 700])
def test_drafts_have_the_bits_that_they_get_one_by_one(dtype: torch.dtype, num_tokens: int, past: int) -> None:
    assert MAX_DRAFT_TOKENS_ON_CPU + 1 <= FEW_TOKENS
    shape, (num_q_heads, num_kv_heads) = shape_with(6, 2, 16), (6, 2)
    pool, ops = BlockPool(shape, num_blocks=200, block_size=16, dtype=dtype), CpuOps()
    packed = random(past + num_tokens, num_q_heads + 2 * num_kv_heads, 16, dtype=dtype)
    q, k, v = packed.split([num_q_heads, num_kv_heads, num_kv_heads], dim=1)

    def compute(conversation: Conversation, num_new: int) -> Tensor:
        first = conversation.num_computed
        new = slice(first, first + num_new)
        with step_context(StepContext(pool.caches, pool.attention_inputs([(conversation, num_new)]), None)):
            output = ops.attention(0, q[new], k[new], v[new], 0.25)
        conversation.num_computed += num_new
        return output

    at_once, one_by_one = Conversation([]), Conversation([])
    compute(at_once, past)
    compute(one_by_one, past)
    assert torch.equal(compute(at_once, num_tokens), torch.cat([compute(one_by_one, 1) for _ in range(num_tokens)]))


def test_decode_of_very_different_lengths() -> None:
    """Lengths in several classes of padding, in mixed order."""
    shape = shape_with(4, 2, 16)
    pool, ops = BlockPool(shape, num_blocks=240, block_size=16), CpuOps()
    lengths = [3, 2049, 300, 40, 512, 513]
    conversations = [Conversation([]) for _ in lengths]
    history = [random(2, length, 2, 16, dtype=torch.float32, seed=length) for length in lengths]
    for conversation, kv, length in zip(conversations, history, lengths, strict=True):
        with step_context(StepContext(pool.caches, pool.attention_inputs([(conversation, length - 1)]), None)):
            ops.attention(0, random(length - 1, 4, 16, dtype=torch.float32), kv[0, :-1], kv[1, :-1], 0.25)
        conversation.num_computed = length - 1
    q = random(len(lengths), 4, 16, dtype=torch.float32)
    k, v = torch.stack([kv[:, -1] for kv in history], dim=1)
    parts = [(conversation, 1) for conversation in conversations]
    with step_context(StepContext(pool.caches, pool.attention_inputs(parts), None)):
        output = ops.attention(0, q, k, v, 0.25)
    for index, kv in enumerate(history):
        assert_near(output[index : index + 1], attention(q[index : index + 1], kv))


def attention(q: Tensor, kv: Tensor) -> Tensor:
    """Causal attention of the last len(q) of kv[2, seq_len, kvh, d], head by head."""
    keys, values = kv.double().repeat_interleave(q.shape[1] // kv.shape[2], dim=2)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * q.shape[2] ** -0.5
    first = len(keys) - len(q)
    later = torch.arange(len(keys)) > torch.arange(first, len(keys))[:, None]
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)


def test_a_block_that_was_full_of_nan_does_no_harm_to_its_next_owner() -> None:
    shape = shape_with(4, 2, 16)
    pool, ops = BlockPool(shape, num_blocks=2, block_size=8), CpuOps()
    broken = Conversation([])
    for conversation, value in ((broken, torch.nan), (Conversation([]), 1.0)):
        q, k, v = (torch.full((3, heads, 16), value) for heads in (4, 2, 2))
        with step_context(StepContext(pool.caches, pool.attention_inputs([(conversation, 3)]), None)):
            ops.attention(0, q, k, v, 0.25)
        conversation.num_computed = 3
        with step_context(StepContext(pool.caches, pool.attention_inputs([(conversation, 1)]), None)):
            output = ops.attention(0, q[:1], k[:1], v[:1], 0.25)
        pool.give_back(conversation)
    assert torch.equal(output, torch.ones(1, 64))
