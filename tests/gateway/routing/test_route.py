"""Candidates for a request: a pure function."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from descant_gateway.catalogue.snapshot import Backend, Catalogue, ModelRoute
from descant_gateway.routing.affinity import Affinity, AffinityKind
from descant_gateway.routing.backend_state import FRESH_S, BackendState, Report
from descant_gateway.routing.breaker import FAILURES_IN_A_ROW
from descant_gateway.routing.route import LOAD_BOUND, Candidates, Look, Reason, Wanted, route
from descant_wire.load import EngineLoad

MODEL = ModelRoute(name="m", upstream_name="m", backends=("a", "b", "c"))
ADAPTER = ModelRoute(name="x", upstream_name="x", parent="m", backends=("a", "b", "c"))
BACKENDS = {name: Backend(name=name, base_url=f"http://{name}") for name in "abcd"}
NOW = 1000.0


def ask(
    states: dict[str, BackendState] | None = None,
    model: ModelRoute = MODEL,
    key: int | None = None,
    *,
    backends: dict[str, Backend] = BACKENDS,
    allows_external: bool = False,
) -> Candidates:
    affinity = None if key is None else Affinity(AffinityKind.PREFIX, key)
    catalogue = Catalogue(version=1, backends=backends)
    return route(Wanted(model, affinity, allows_external), Look(catalogue, states or {}, NOW))


def names(candidates: Candidates) -> str:
    return "".join(backend.name for backend in candidates.backends)


def reporting(age_s: float = 0.0, adapters: dict[str, str] | None = None, **fields: object) -> BackendState:
    values = {"num_running": 0, "num_waiting": 0, "max_running": 8, "num_queued_tokens": 0, "kv_usage": 0.0}
    load = EngineLoad(**(values | fields), residency=1)
    return BackendState(report=Report(load, NOW - age_s, 0), adapters=adapters or {})


def test_least_busy_first_then_least_sent_then_as_listed() -> None:
    states = {
        "a": BackendState(num_in_flight=2, num_sent=9),
        "b": BackendState(num_in_flight=1, num_sent=9),
        "c": BackendState(num_in_flight=1, num_sent=3),
    }
    assert names(ask(states)) == "cba"
    assert names(ask()) == "abc"
    assert ask(states).reason is Reason.LEAST_BUSY


def test_a_backend_without_the_model_is_never_a_candidate() -> None:
    assert "d" not in names(ask({name: BackendState(num_in_flight=5) for name in "abc"}))


def test_unhealthy_ones_are_left_out() -> None:
    assert names(ask({"a": BackendState(is_healthy=False)})) == "bc"


def test_none_healthy_or_none_known_is_nobody() -> None:
    assert names(ask({name: BackendState(is_healthy=False) for name in "abc"})) == ""
    assert names(ask(model=ModelRoute(name="m", upstream_name="m", backends=("gone",)))) == ""


def test_does_not_change_what_it_reads() -> None:
    states = {"a": BackendState(num_in_flight=1, num_sent=4)}
    ask(states, key=7)
    assert (states["a"].num_in_flight, states["a"].num_sent, states["a"].is_healthy) == (1, 4, True)


def test_weights_share_the_work() -> None:
    model = ModelRoute(name="m", upstream_name="m", backends=("a", "b"), weights=(3, 1))
    states = {name: BackendState() for name in "ab"}
    for _ in range(400):
        states[names(ask(states, model))[0]].num_sent += 1
    assert states["a"].num_sent == pytest.approx(300, abs=2)


def test_one_key_has_one_backend_and_keys_spread() -> None:
    firsts = [names(ask(key=key))[0] for key in range(3000)]
    assert firsts == [names(ask(key=key))[0] for key in range(3000)]
    for name in "abc":
        assert 850 < firsts.count(name) < 1150
    assert ask(key=1).reason is Reason.PREFIX


def test_only_the_keys_of_a_backend_that_goes_move() -> None:
    gone = {"b": BackendState(is_healthy=False)}
    for key in range(500):
        before, after = names(ask(key=key))[0], names(ask(gone, key=key))[0]
        assert after == before or before == "b"


def test_weights_share_the_keys() -> None:
    model = ModelRoute(name="m", upstream_name="m", backends=("a", "b"), weights=(4, 1))
    firsts = [names(ask(model=model, key=key * 7919))[0] for key in range(4000)]
    assert firsts.count("a") == pytest.approx(3200, rel=0.05)


@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_one_key_never_overloads_its_backend(num_requests: int, key: int) -> None:
    states = {name: BackendState() for name in "abc"}
    for _ in range(num_requests):
        states[names(ask(states, key=key))[0]].num_in_flight += 1
    most = max(state.num_in_flight for state in states.values())
    assert most <= LOAD_BOUND * (num_requests / 3) + 2


def test_what_the_bound_sends_elsewhere_says_so() -> None:
    own = names(ask(key=5))[0]
    candidates = ask({own: BackendState(num_in_flight=10)}, key=5)
    assert names(candidates)[0] != own
    assert candidates.reason is Reason.BOUNDED


def test_an_adapter_goes_where_it_is() -> None:
    states = {"a": reporting(), "b": reporting(adapters={"x": "host"}), "c": reporting(adapters={"x": "gpu"})}
    assert names(ask(states, ADAPTER)) == "cba"
    assert ask(states, ADAPTER).reason is Reason.ADAPTER_ON_GPU
    del states["c"]
    assert ask(states, ADAPTER).reason is Reason.ADAPTER_ON_HOST
    assert names(ask(states)) == "abc"  # the base model's requests don't care


def test_stale_reports_leave_only_the_load() -> None:
    old = FRESH_S + 0.1
    states = {
        "a": reporting(old, num_running=7, num_queued_tokens=9000),
        "b": reporting(old, adapters={"x": "gpu"}),
    }
    states["b"].num_in_flight = 1
    assert names(ask(states, ADAPTER)) == "acb"


def test_requests_of_other_gateways_and_queued_tokens_count() -> None:
    assert names(ask({"a": reporting(num_running=3)})) == "bca"
    assert names(ask({"a": reporting(num_queued_tokens=4096), "b": reporting(num_running=2)})) == "cba"


def test_a_full_backend_comes_last_and_all_full_is_saturated() -> None:
    full = reporting(num_running=8)
    candidates = ask({"a": full}, ADAPTER)
    assert (names(candidates), candidates.is_saturated) == ("bca", False)
    assert ask({"a": full, "b": full, "c": full}).is_saturated


def test_a_bound_that_is_configured_goes_before_what_the_engine_says() -> None:
    backends = {name: Backend(name=name, base_url="http://x", max_in_flight=2) for name in "abc"}
    states = {name: BackendState(num_in_flight=2) for name in "abc"}
    assert ask(states, backends=backends).is_saturated
    states["b"].num_in_flight = 1
    assert not ask(states, backends=backends).is_saturated


def test_data_stays_in_the_house_unless_the_team_may() -> None:
    backends = BACKENDS | {"b": Backend(name="b", base_url="http://b", is_external=True)}
    assert names(ask(backends=backends)) == "ac"
    assert names(ask(backends=backends, allows_external=True)) == "abc"
    only = ModelRoute(name="m", upstream_name="m", backends=("b",))
    assert (names(ask(model=only, backends=backends)), ask(model=only, backends=backends).is_kept_inside) == ("", True)


def failing() -> BackendState:
    state = BackendState()
    for _ in range(FAILURES_IN_A_ROW):
        state.breaker.failed(NOW)
    return state


def test_one_that_keeps_failing_is_left_alone_while_there_are_others() -> None:
    assert names(ask({"a": failing()})) == "bc"
    candidates = ask({name: failing() for name in "abc"})
    assert (names(candidates), candidates.reason) == ("abc", Reason.NO_OTHER)
    states = {name: failing() for name in "abc"} | {"b": BackendState(is_healthy=False)}
    assert names(ask(states)) == "ac"


def test_the_last_resort_does_not_leave_the_house_either() -> None:
    backends = {name: Backend(name=name, base_url="http://x", is_external=True) for name in "abc"}
    assert names(ask({name: failing() for name in "abc"}, backends=backends)) == ""


@given(st.randoms(use_true_random=False))
def test_every_available_backend_is_a_candidate_once(dice: random.Random) -> None:
    states = {
        name: BackendState(is_healthy=dice.random() < 0.7, num_in_flight=dice.randrange(20), num_sent=dice.randrange(9))
        for name in "abc"
    }
    found = names(ask(states, dice.choice((MODEL, ADAPTER)), dice.choice((None, dice.getrandbits(64)))))
    assert sorted(found) == sorted(name for name in "abc" if states[name].is_healthy)
