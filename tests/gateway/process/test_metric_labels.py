"""The number of series has a bound, however many models and priorities there are."""

from datetime import UTC, datetime
from uuid import UUID

from descant_gateway.process.metrics import MAX_MODEL_LABELS, MAX_PRIORITY_LABELS, Metrics
from descant_gateway.usage.record import Outcome, UsageRecord

NOBODY = UUID(int=0)


def record_of(model: str) -> UsageRecord:
    return UsageRecord(
        charge_id=NOBODY,
        created_at=datetime.now(UTC),
        organization_id=NOBODY,
        team_id=NOBODY,
        key_id=NOBODY,
        request_id="r",
        model=model,
        parent=None,
        backend="b",
        endpoint="/v1/chat/completions",
        stream=False,
        outcome=Outcome.COMPLETED,
        status=200,
        prompt_tokens=1,
        cached_tokens=0,
        completion_tokens=1,
        estimated=False,
        ttft_ms=1,
        duration_ms=1,
    )


def test_models_and_priorities_beyond_the_bound_are_counted_together() -> None:
    metrics = Metrics()
    num_models = MAX_MODEL_LABELS + 50
    for number in range(num_models):
        metrics.settled(record_of(f"adapter-{number}"))
        metrics.waited(number, "served", 0.1)
    lines = metrics.render().decode().splitlines()
    requests = [line for line in lines if line.startswith("descant_gateway_requests_total{")]
    assert len(requests) == MAX_MODEL_LABELS + 1
    assert 'descant_gateway_requests_total{model="other",outcome="completed"} 50.0' in requests
    waits = [line for line in lines if line.startswith("descant_gateway_queue_wait_seconds_count{")]
    assert len(waits) == MAX_PRIORITY_LABELS + 1
    metrics.settled(record_of("adapter-0"))  # one that has a label keeps it
    assert 'descant_gateway_requests_total{model="adapter-0",outcome="completed"} 2.0' in metrics.render().decode()
