"""Every fault for a moment, on one plant: what docs/faults.md says is what each class of request sees.

`python -m tests.system.faults` lets each last for a minute.
"""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.system.faults.__main__ import run_all
from tests.system.faults.faults import FAULTS, ClockJump
from tests.system.faults.plant import Plant, running_plant

OUTAGE_S = 1.5
"""Longer than what a gateway waits for Valkey before it is away."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def plant() -> AsyncIterator[Plant]:
    # Not pytest's tmp_path: a unix socket's path may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="dsc-") as folder:
        async with running_plant(Path(folder)) as plant:
            yield plant


async def test_a_fault_costs_what_is_written_and_no_usage(plant: Plant) -> None:
    faults = [fault for fault in FAULTS if plant.clock.is_movable or not isinstance(fault, ClockJump)]
    reports = [report async for report in run_all(plant, faults, outage_s=OUTAGE_S)]
    assert {report.fault: report.violations for report in reports if report.violations} == {}
    assert len(reports) == len(faults)
    for report in reports:
        assert report.num_ledger_rows > 30, report
        assert (report.lost_rows, report.wrong_401, report.restarts) == (0, 0, 0), report
