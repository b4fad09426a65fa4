"""Triton kernels of the engine, each with a plain-torch reference of the same signature in `reference`.

Importing compiles nothing and touches no device.
"""

from descant_kernels.activation import silu_mul
from descant_kernels.attention import invariant_attention, paged_attention
from descant_kernels.decode_inputs import DecodeInputs, RequestRows, decode_inputs
from descant_kernels.greedy import greedy
from descant_kernels.invariant_product import invariant_product
from descant_kernels.kv_write import kv_write
from descant_kernels.lora_expand import lora_expand
from descant_kernels.lora_segments import LoraSegments, segment_tokens
from descant_kernels.lora_shrink import lora_shrink
from descant_kernels.lora_silu_mul import lora_expand_silu_mul
from descant_kernels.lora_tables import LoraTables, ProjectionGroup
from descant_kernels.norm import add_rms_norm, rms_norm
from descant_kernels.rotary import rotary, rotary_kv_write
from descant_kernels.sample import sample
from descant_kernels.skinny_product import can_multiply, skinny_product
from descant_kernels.token_bitmask import apply_token_bitmask
from descant_kernels.truncate import truncate
from descant_kernels.tuning import SKINNY_MAX_TOKENS

__all__ = [
    "SKINNY_MAX_TOKENS",
    "DecodeInputs",
    "LoraSegments",
    "LoraTables",
    "ProjectionGroup",
    "RequestRows",
    "add_rms_norm",
    "apply_token_bitmask",
    "can_multiply",
    "decode_inputs",
    "greedy",
    "invariant_attention",
    "invariant_product",
    "kv_write",
    "lora_expand",
    "lora_expand_silu_mul",
    "lora_shrink",
    "paged_attention",
    "rms_norm",
    "rotary",
    "rotary_kv_write",
    "sample",
    "segment_tokens",
    "silu_mul",
    "skinny_product",
    "truncate",
]
