"""What is wanted of each workload: the ratio to the peer on the same GPU, and to our own base on the same requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    wanted: float
    """Ratio to vLLM, at least."""
    stretch: float
    own_base: str | None = None
    """The same requests without adapters."""
    wanted_of_base: float | None = None


TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        "throughput-512in-256out-1000": Target(1.03, 1.1),
        "decode-bs1": Target(1.12, 1.2),
        "decode-bs8": Target(1.10, 1.2),
        "decode-bs64": Target(1.10, 1.2),
        "decode-bs256": Target(1.06, 1.15),
        "prefill-8192": Target(0.95, 1.0),
        "shared-prefix-2048": Target(1.1, 1.3),
        "lora64-all-r16-uniform": Target(2.2, 2.6, "throughput-512in-256out-1000", 0.87),
        "lora64-decode-bs64": Target(2.6, 3.2, "decode-bs64"),
        "lora64-decode-bs256": Target(2.5, 2.9, "decode-bs256"),
        "lora1-decode-bs1": Target(1.5, 1.7, "decode-bs1", 0.88),
        "lora128-attn-mixed-uniform-400": Target(2.3, 2.8),
        "lora512-attn-r8-uniform-400": Target(4.0, 5.0, "base-512in-256out-400", 0.85),
    }
)

COUNTS_PROMPT_TOKENS: Final = frozenset({"prefill-8192"})
"""Cases that generate next to nothing: their figure is prompt and output tokens a second."""
