"""What an ended request comes to: outcome, charge, and what its limits keep."""

import asyncio

import pytest

from descant_gateway.errors import ClientLeft, ClientTimeUp
from descant_gateway.ledger.settle import amounts_of, charge_of, outcome_of, status_of
from descant_gateway.limits.limit import NOTHING, Amounts
from descant_gateway.request import read_request
from descant_gateway.usage.meter import NO_CHARGE, Charge, Meter, PromptTokensDetails, Usage, usage_of_reply
from descant_gateway.usage.record import Outcome
from descant_wire.errors import bad_gateway, invalid_request

REQUEST = read_request("/v1/completions", b'{"model":"m","prompt":[1,2,3,4,5,6]}')


def meter_of(*, status: int = 200, usage: Usage | None = None, num_chunks: int = 0, failure: str = "") -> Meter:
    meter = Meter()
    meter.is_generating = True
    meter.status, meter.usage, meter.failure = status, usage, failure
    meter.content.add(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n' * num_chunks)
    if status:
        meter.mark_first_byte()
    return meter


@pytest.mark.parametrize(
    ("error", "meter", "outcome", "status"),
    [
        (None, meter_of(), Outcome.COMPLETED, 200),
        (None, meter_of(status=400), Outcome.REFUSED, 400),
        (None, meter_of(failure="broke"), Outcome.UPSTREAM_FAILED, 200),
        (ClientLeft(), meter_of(), Outcome.CLIENT_LEFT, 499),
        (ClientLeft(), meter_of(status=0), Outcome.CLIENT_LEFT, 499),
        (ClientTimeUp("x"), meter_of(status=0), Outcome.CLIENT_LEFT, 504),
        (bad_gateway("x"), meter_of(status=0), Outcome.UPSTREAM_FAILED, 502),
        (invalid_request("x"), meter_of(status=0), Outcome.REFUSED, 400),
        (ValueError(), meter_of(status=0), Outcome.UPSTREAM_FAILED, 500),
        (asyncio.CancelledError(), meter_of(), Outcome.UPSTREAM_FAILED, 200),
    ],
)
def test_every_end_has_an_outcome_and_a_status(
    error: BaseException | None, meter: Meter, outcome: Outcome, status: int
) -> None:
    assert outcome_of(error, meter) is outcome
    assert status_of(error, meter) == status


def test_the_backend_s_count_is_charged_where_there_is_one() -> None:
    usage = Usage(prompt_tokens=10, completion_tokens=4, prompt_tokens_details=PromptTokensDetails(cached_tokens=8))
    for outcome in Outcome:
        assert charge_of(outcome, meter_of(usage=usage, num_chunks=99), REQUEST) == Charge(10, 8, 4, False)


def test_our_own_count_is_charged_where_there_is_none() -> None:
    assert charge_of(Outcome.CLIENT_LEFT, meter_of(num_chunks=3), REQUEST) == Charge(6, 0, 3, True)


def test_a_request_that_no_backend_took_costs_nothing() -> None:
    meter = Meter()
    assert charge_of(Outcome.CLIENT_LEFT, meter, REQUEST) is NO_CHARGE


def test_a_failure_before_the_first_byte_is_given_back_wholly() -> None:
    charge = charge_of(Outcome.UPSTREAM_FAILED, meter_of(status=0), REQUEST)
    assert charge is NO_CHARGE
    assert amounts_of(Outcome.UPSTREAM_FAILED, charge, 0) == NOTHING


def test_a_client_that_gave_no_more_time_pays_what_ran() -> None:
    meter = meter_of(status=0, usage=Usage(prompt_tokens=6, completion_tokens=2))
    outcome = outcome_of(ClientTimeUp("x"), meter)
    charge = charge_of(outcome, meter, REQUEST)
    assert charge == Charge(6, 0, 2, False)
    assert amounts_of(outcome, charge, 9) == Amounts(1, 8, 9)


def test_a_refused_request_still_counts_as_one() -> None:
    assert amounts_of(Outcome.REFUSED, NO_CHARGE, 0) == Amounts(1, 0)


def test_a_completed_request_keeps_its_tokens() -> None:
    assert amounts_of(Outcome.COMPLETED, Charge(10, 8, 4, False), 77) == Amounts(1, 14, 77)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no",
        b"[]",
        b'{"usage":7}',
        b'{"usage":{"prompt_tokens":-1}}',
        b'{"usage":null}',
        b'{"usage":' + b"[" * 9000,
    ],
)
def test_a_reply_without_usage_that_can_be_read_has_none(body: bytes) -> None:
    assert usage_of_reply(body) is None


def test_usage_may_lack_parts() -> None:
    assert usage_of_reply(b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":null}}}') == Usage(
        prompt_tokens=3, prompt_tokens_details=PromptTokensDetails()
    )
    assert usage_of_reply(b'{"usage":{"prompt_tokens":3,"completion_tokens":null}}') == Usage(
        prompt_tokens=3, completion_tokens=0
    )
