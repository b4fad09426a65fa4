"""The GPU's operations, with sums in an order that nothing in the batch decides: a token's bits are the same alone and
in any batch, in any chunk, before and after preemption, with its prefix cached or not.
"""

from torch import Tensor

import descant_kernels as kernels
from descant_engine.forward_context import AttentionInputs, LayerKv
from descant_engine.layers.cuda_ops import DECODE_SEGMENT_SIZE, CudaOps
from descant_engine.layers.cuda_products import DenseProduct
from descant_engine.layers.ops import LoraGroup, Product


class InvariantProduct(DenseProduct):
    def __call__(self, x: Tensor) -> Tensor:
        return kernels.invariant_product(x, self.weight, self.bias)

    def fill_sums(self, sums: Tensor, x: Tensor) -> None:
        kernels.invariant_product(x, self.weight, self.bias, out=sums[0])


class DeterministicCudaOps(CudaOps):
    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return InvariantProduct(weight, bias)

    def residual_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        return InvariantProduct(weight, bias)

    def lora_gated_product(self, group: LoraGroup, product: Product, x: Tensor) -> Tensor:
        return self.silu_mul(self.lora_product(group, product, x))

    def _attend(self, q: Tensor, cache: LayerKv, inputs: AttentionInputs, scale: float) -> Tensor:
        tables = inputs.block_tables, inputs.query_start_loc, inputs.seq_lens
        return kernels.invariant_attention(q, cache.keys, cache.values, *tables, scale)

    def _segment_size(self) -> int:
        return DECODE_SEGMENT_SIZE
