"""What a step must read and compute at least, from the shapes of model and adapters: the floor beside each part's time.

Every weight, adapter and KV entry that the step needs is counted once, however often kernels read it. Activations count
where a part does nothing but move them (norm, rotary, activation, sampling); dense products and adapters are counted
by their weights, since a fused kernel need not write what lies between. A product has two operations for each weight
and token.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from descant_bench.step_parts import Part
from descant_engine.adapters.manifest import AdapterManifest, TargetModule
from descant_engine.config import DTYPE_BYTES, ModelShape, ResolvedConfig
from descant_engine.scheduler.plan import ScheduledRequest


class Work(NamedTuple):
    num_bytes: int = 0
    num_operations: int = 0

    def plus(self, other: "Work") -> "Work":
        return Work(self.num_bytes + other.num_bytes, self.num_operations + other.num_operations)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device can do at most."""

    bytes_per_s: float
    """Of a copy: bytes read plus bytes written."""
    operations_per_s: float
    """Of a dense product in the model's dtype."""

    def seconds(self, work: Work) -> float:
        return max(work.num_bytes / self.bytes_per_s, work.num_operations / self.operations_per_s)


@dataclass(frozen=True)
class ModelWork:
    """Work per step of one model. `adapters` maps request ids to the adapters that they use."""

    config: ResolvedConfig

    def of_step(
        self, scheduled: Iterable[ScheduledRequest], adapters: Mapping[str, AdapterManifest]
    ) -> dict[Part, Work]:
        requests = tuple(scheduled)
        num_tokens = sum(request.num_scheduled_tokens for request in requests)
        num_samples = sum(request.samples for request in requests)
        work = {
            Part.DENSE: self._dense(num_tokens, num_samples),
            Part.ATTENTION: self._attention(requests),
            Part.SAMPLING: Work(num_samples * self._shape.vocab_size * self._size),
        }
        return work | self._small(num_tokens) | self._lora(requests, adapters)

    @property
    def _shape(self) -> ModelShape:
        return self.config.shape

    @property
    def _size(self) -> int:
        return DTYPE_BYTES[self.config.dtype]

    @cached_property
    def _linear_weights(self) -> int:
        shapes = (self._shape.linear_shape(module) for module in TargetModule)
        return self._shape.num_layers * sum(rows * columns for rows, columns in shapes)

    def _dense(self, num_tokens: int, num_samples: int) -> Work:
        output_weights = self._shape.vocab_size * self._shape.hidden_size
        weights = self._linear_weights + (output_weights if num_samples else 0)
        products = num_tokens * self._linear_weights + num_samples * output_weights
        return Work(weights * self._size, 2 * products)

    def _attention(self, requests: tuple[ScheduledRequest, ...]) -> Work:
        shape = self._shape
        num_keys = sum(r.num_computed_tokens + r.num_scheduled_tokens for r in requests)
        num_tokens = sum(r.num_scheduled_tokens for r in requests)
        pairs = sum(
            r.num_scheduled_tokens * r.num_computed_tokens + r.num_scheduled_tokens * (r.num_scheduled_tokens + 1) // 2
            for r in requests
        )
        q_width = shape.num_q_heads * shape.head_dim
        elements = num_keys * shape.kv_elements_per_token + 2 * num_tokens * q_width * shape.num_layers
        return Work(elements * self._size, 4 * pairs * q_width * shape.num_layers)

    def _small(self, num_tokens: int) -> dict[Part, Work]:
        shape, per_token = self._shape, num_tokens * self._size
        q_width, kv_width = shape.num_q_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        return {
            Part.NORM: Work(4 * (2 * shape.num_layers + 1) * shape.hidden_size * per_token),
            Part.ROTARY: Work(2 * shape.num_layers * (q_width + 2 * kv_width) * per_token),
            Part.ACTIVATION: Work(3 * shape.num_layers * shape.intermediate_size * per_token),
        }

    def _lora(
        self, requests: tuple[ScheduledRequest, ...], adapters: Mapping[str, AdapterManifest]
    ) -> dict[Part, Work]:
        tokens_of: dict[str, int] = defaultdict(int)
        manifests: dict[str, AdapterManifest] = {}
        for request in requests:
            if (manifest := adapters.get(request.request_id)) is not None:
                tokens_of[manifest.digest] += request.num_scheduled_tokens
                manifests[manifest.digest] = manifest
        shrink = expand = Work()
        for digest, manifest in manifests.items():
            num_a, num_b = self._adapter_weights(manifest)
            shrink = shrink.plus(Work(num_a * self._size, 2 * num_a * tokens_of[digest]))
            expand = expand.plus(Work(num_b * self._size, 2 * num_b * tokens_of[digest]))
        return {Part.LORA_SHRINK: shrink, Part.LORA_EXPAND: expand} if manifests else {}

    def _adapter_weights(self, manifest: AdapterManifest) -> tuple[int, int]:
        if manifest.digest not in self._weights_of_adapter:
            shapes = [(module.lora_rank, *self._shape.linear_shape(module.module)) for module in manifest.modules]
            self._weights_of_adapter[manifest.digest] = (
                sum(rank * in_features for rank, in_features, _ in shapes),
                sum(rank * out_features for rank, _, out_features in shapes),
            )
        return self._weights_of_adapter[manifest.digest]

    @cached_property
    def _weights_of_adapter(self) -> dict[str, tuple[int, int]]:
        return {}


def sum_of_steps(steps: Iterable[Mapping[Part, Work]]) -> dict[Part, Work]:
    total: dict[Part, Work] = {}
    for step in steps:
        for part, work in step.items():
            total[part] = total.get(part, Work()).plus(work)
    return total
