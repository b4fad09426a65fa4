"""Usage records for tests that care about a few of their fields."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from msgspec.structs import replace

from descant_gateway.usage.record import Outcome, UsageRecord


def usage_record(**fields: object) -> UsageRecord:
    """Of a completed request, with a charge of its own; `fields` are what the test cares about."""
    plain = UsageRecord(
        charge_id=uuid4(),
        created_at=datetime.now(UTC),
        organization_id=UUID(int=1),
        team_id=uuid4(),
        key_id=UUID(int=2),
        request_id="req",
        model="base",
        parent=None,
        backend="engine",
        endpoint="/v1/completions",
        stream=False,
        outcome=Outcome.COMPLETED,
        status=200,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=5,
        estimated=False,
        ttft_ms=None,
        duration_ms=3,
    )
    return replace(plain, **fields)
