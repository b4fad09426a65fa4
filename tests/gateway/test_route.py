"""Candidates for a request: a pure function."""

import pytest

from descant_gateway.catalogue import Backend, Catalogue, ModelRoute
from descant_gateway.route import BackendState, route
from descant_wire.errors import ApiError

MODEL = ModelRoute(name="m", upstream_name="m", backends=("a", "b", "c"))
CATALOGUE = Catalogue(version=1, backends={name: Backend(name=name, base_url=f"http://{name}") for name in "abcd"})


def names(states: dict[str, BackendState], model: ModelRoute = MODEL) -> str:
    return "".join(backend.name for backend in route(model, CATALOGUE, states))


def test_least_busy_first_then_least_sent_then_as_listed() -> None:
    states = {
        "a": BackendState(num_in_flight=2, num_sent=9),
        "b": BackendState(num_in_flight=1, num_sent=9),
        "c": BackendState(num_in_flight=1, num_sent=3),
    }
    assert names(states) == "cba"
    assert names({}) == "abc"


def test_a_backend_without_the_model_is_never_a_candidate() -> None:
    assert "d" not in names({name: BackendState(num_in_flight=5) for name in "abc"})


def test_unhealthy_ones_are_left_out() -> None:
    assert names({"a": BackendState(is_healthy=False)}) == "bc"


def test_none_healthy_or_none_known_is_503_with_retry_after() -> None:
    down = {name: BackendState(is_healthy=False) for name in "abc"}
    for states, model in ((down, MODEL), ({}, ModelRoute(name="m", upstream_name="m", backends=("gone",)))):
        with pytest.raises(ApiError) as caught:
            route(model, CATALOGUE, states)
        assert (caught.value.status, caught.value.detail.code) == (503, "no_healthy_backend")
        assert "retry-after" in caught.value.headers


def test_does_not_change_what_it_reads() -> None:
    states = {"a": BackendState(num_in_flight=1)}
    route(MODEL, CATALOGUE, states)
    assert states == {"a": BackendState(num_in_flight=1)}
