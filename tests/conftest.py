"""Tests that need a device the machine does not have are left out, visibly, by their marker."""

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    num_devices = torch.cuda.device_count()
    needed = {"gpu": 1, "multigpu": 2}
    without_device = [
        item
        for item in items
        if any(num_devices < count and item.get_closest_marker(marker) for marker, count in needed.items())
    ]
    if without_device:
        config.hook.pytest_deselected(items=without_device)
        items[:] = [item for item in items if item not in set(without_device)]
