"""The number of series has a bound, however many models and priorities there are."""

from tests.gateway.usage_records import usage_record

from descant_gateway.process.metrics import MAX_MODEL_LABELS, MAX_PRIORITY_LABELS, Metrics


def test_models_and_priorities_beyond_the_bound_are_counted_together() -> None:
    metrics = Metrics()
    num_models = MAX_MODEL_LABELS + 50
    for number in range(num_models):
        metrics.settled(usage_record(model=f"adapter-{number}"))
        metrics.waited(number, "served", 0.1)
    lines = metrics.render().decode().splitlines()
    requests = [line for line in lines if line.startswith("descant_gateway_requests_total{")]
    assert len(requests) == MAX_MODEL_LABELS + 1
    assert 'descant_gateway_requests_total{model="other",outcome="completed"} 50.0' in requests
    waits = [line for line in lines if line.startswith("descant_gateway_queue_wait_seconds_count{")]
    assert len(waits) == MAX_PRIORITY_LABELS + 1
    metrics.settled(usage_record(model="adapter-0"))  # one that has a label keeps it
    assert 'descant_gateway_requests_total{model="adapter-0",outcome="completed"} 2.0' in metrics.render().decode()
