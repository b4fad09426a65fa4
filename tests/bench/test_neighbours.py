from collections import Counter

from descant_bench.neighbours import BURST_S, FLOOD, Prompts, flood, many

PROMPTS = Prompts(vocab_size=500, prompt_tokens=4, max_tokens=2)


def test_many_adapters_and_a_trickle() -> None:
    requests = many(PROMPTS, num_adapters=6, each=3)
    burst = [request for request in requests if request.group == "burst"]
    assert Counter(request.adapter for request in burst) == dict.fromkeys(range(1, 6), 3)
    assert {request.arrival_s for request in burst} == {BURST_S}
    trickle = [request for request in requests if request.group != "burst"]
    assert {(request.group, request.adapter) for request in trickle} == {("resident", FLOOD), ("base", None)}
    assert [request.arrival_s for request in trickle] == sorted(request.arrival_s for request in trickle)
    assert trickle[0].arrival_s == 0
    assert {request.tenant for request in trickle}.isdisjoint(request.tenant for request in burst)
    assert len({request.prompt_token_ids for request in requests}) == len(requests)


def test_a_flood_is_nine_of_ten_requests() -> None:
    others, flooding = flood(PROMPTS, rate=50)
    assert len(flooding) == 9 * len(others)
    assert {request.adapter for request in flooding} == {FLOOD}
    assert FLOOD not in {request.adapter for request in others}
    last = max(request.arrival_s for request in others)
    assert abs(last - max(request.arrival_s for request in flooding)) < 1
