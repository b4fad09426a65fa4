"""A revoked key ends, and a rotated one changes over, on three gateway processes under load."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.gateway.databases import postgres_url

from .revocation_run import NUM_REPLICAS, Figures, Replicas, measure_revocation, rotate, running_replicas

__all__ = ["postgres_url"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(params=[True, False], ids=["postgresql and valkey", "valkey alone"])
async def replicas(request: pytest.FixtureRequest, postgres_url: str, tmp_path: Path) -> AsyncIterator[Replicas]:
    async with running_replicas(tmp_path, postgres_url, listen=request.param) as replicas:
        yield replicas


async def test_a_revoked_key_ends_within_a_second_and_a_rotated_one_changes_over(replicas: Replicas) -> None:
    figures = Figures("", num_revocations=12, num_other_keys=0)
    await measure_revocation(replicas, figures)
    assert len(figures.seconds) == 12 * NUM_REPLICAS
    # Other tests have the machine's cores too; docs/results has the figures of a machine by itself.
    assert figures.percentile(0.9) < 1.0, figures.seconds
    assert max(figures.seconds) < 3.0, figures.seconds
    assert figures.requests_meanwhile > 50
    assert figures.refused_meanwhile == 0
    within, after = await rotate(replicas, grace_s=4)
    assert within == [[200, 200]] * NUM_REPLICAS
    assert after == [[401, 200]] * NUM_REPLICAS
