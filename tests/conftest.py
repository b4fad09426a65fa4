"""Tests that need a device the machine does not have are left out, visibly, by their marker. Several processes
(pytest-xdist) take the tests by groups, long ones first, with one thread each."""

import functools
import os
import ssl

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported; whatever a test starts inherits it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
SHARED_ENGINE, SHARED_STACK = "engine_under_test", "stack"
# httpx reads the certificates of all authorities for each client, 20 ms, and a run makes thousands, all for loopback.
ssl.create_default_context = functools.cache(ssl.create_default_context)

LONGEST = (
    "system/test_real_model.py",
    SHARED_ENGINE,
    SHARED_STACK,
    "system/test_revocation.py",
    "system/test_up.py",
    "system/faults/test_faults.py",
    "server/test_serving.py",
    "engine/test_async_engine.py",
    "kernels/test_compiles_for_hopper.py",
    "cli/run_batch/test_run.py",
    "system/test_never_oversold.py",
    "system/test_batch_run.py",
    "engine/layers/test_cuda_ops.py",
    "deploy/test_commands.py",
)
"""The groups of more than ten seconds. One that began last would leave the other processes idle."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist writes the groups into the names of the tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_without_device(config, items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        form_groups(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist does not see the groups of tests: are its version and pytest's a pair?")


def form_groups(items: list[pytest.Item]) -> None:
    groups = {item: group_of(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


def group_of(item: pytest.Item) -> str:
    """What stays in one process: a file, and all files that share the engine of the real model, or the suite's of the
    tiny one."""
    for shared in (SHARED_ENGINE, SHARED_STACK):
        if shared in getattr(item, "fixturenames", ()):
            return shared
    return item.path.relative_to(TESTS).as_posix()


def leave_out_without_device(config: pytest.Config, items: list[pytest.Item]) -> None:
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
