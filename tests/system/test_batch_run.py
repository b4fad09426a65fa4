"""The small edition of `batch_run`: a batch survives the death of an engine and of a gateway."""

import tempfile
from pathlib import Path

import pytest

from .batch_run import LEASE_S, run


@pytest.mark.slow
async def test_a_batch_is_answered_once_through_the_death_of_an_engine_and_a_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DESCANT_BATCH_LEASE_S", LEASE_S)
    with tempfile.TemporaryDirectory(prefix="descant-") as folder:
        outcome = await run(Path(folder), 60, 0.5)
    outcome.check()
    assert outcome.ttft_beside_ms
