from collections.abc import Callable

import psutil
import torch

from descant_engine.config import ResolvedConfig
from descant_engine.runner.memory import allocate_pool

MEBIBYTE = 1 << 20


def test_the_cpus_pool_is_zeros_that_take_memory_where_they_are_written(
    config_of: Callable[..., ResolvedConfig],
) -> None:
    config = config_of("cpu")
    num_blocks = 256 * MEBIBYTE // (4 * config.block_elements)
    before = psutil.Process().memory_info().rss
    pool = allocate_pool(config, num_blocks, torch.float32, torch.device("cpu"))
    pool[num_blocks // 2] = 1.0
    assert pool.shape == (num_blocks, config.block_elements)
    assert pool.sum() == config.block_elements
    assert psutil.Process().memory_info().rss - before < 64 * MEBIBYTE
    assert pool.data_ptr() % 64 == 0  # where vector units like to begin
