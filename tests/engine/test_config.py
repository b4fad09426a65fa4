"""What an engine cannot be started with."""

from typing import Any

import pytest

from descant_engine.config import EngineConfig, EngineOptions


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("seed", 2**63, "[-9223372036854775808, 9223372036854775807]"),
        ("block_size", 0, "[1, 2147483647]"),
        ("num_blocks", 0, "[1, 2147483647]"),
        ("gpu_memory_utilization", 9.0, "(0, 1]"),
        ("gpu_memory_utilization", 0.0, "(0, 1]"),
        ("gpu_memory_utilization", float("nan"), "(0, 1]"),
        ("cpu_pool_bytes", -1, "[1, 9223372036854775807]"),
        ("max_num_seqs", 0, "[1, 2147483647]"),
        ("max_num_batched_tokens", -4, "[1, 2147483647]"),
        ("max_num_queued_requests", 0, "[1, 9223372036854775807]"),
        ("max_lora_rank", 0, "[1, 2147483647]"),
        ("max_loras", 0, "[1, 2147483647]"),
        ("adapter_host_bytes", -1, "[0, 9223372036854775807]"),
    ],
)
def test_a_number_outside_its_range_is_refused_with_the_range(field: str, value: float, allowed: str) -> None:
    wrong: Any = {field: value}
    with pytest.raises(ValueError) as caught:
        EngineConfig(model="m", **wrong)
    assert str(caught.value) == f"{field} must be in {allowed}; got {value!r}"


def test_every_length_of_a_vector_is_checked() -> None:
    with pytest.raises(ValueError, match=r"matryoshka_dimensions must be in \[1, 2147483647\]; got 0"):
        EngineConfig(model="m", matryoshka_dimensions=(64, 0))


def test_the_ends_of_the_ranges_are_inside() -> None:
    least: EngineOptions = {
        "block_size": 1,
        "num_blocks": 1,
        "cpu_pool_bytes": 1,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 1,
        "max_num_queued_requests": 1,
        "max_lora_rank": 1,
        "max_loras": 1,
        "adapter_host_bytes": 0,
        "gpu_memory_utilization": 1.0,
    }
    assert EngineConfig(model="m", **least).num_blocks == 1
