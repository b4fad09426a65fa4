"""One request's fault is that request's alone."""

import logging

import pytest

from descant_engine.outputs import RequestOutput, Usage
from descant_engine.request import FinishReason, TokenDelta
from descant_engine.serving.active_requests import ActiveRequests
from descant_engine.serving.request_stream import RequestFailed


class Text:
    """Shows the number of tokens; cannot read the token 13."""

    num_prompt_tokens = 1

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    def apply(self, delta: TokenDelta) -> RequestOutput | None:
        if 13 in delta.token_ids:
            raise KeyError(13)
        return RequestOutput(self.request_id, "x", tuple(delta.token_ids), Usage(1, 1, 0), delta.finish_reason)


def delta(engine_id: str, token_id: int, finish_reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(engine_id, (token_id,), finish_reason, None, 0)


async def test_an_output_that_cannot_be_read_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    aborted: list[str] = []
    active = ActiveRequests(abort=aborted.append)
    streams = {name: active.add(f"{name}/0", Text(name)) for name in ("first", "bad", "last")}
    with caplog.at_level(logging.ERROR):
        active.deliver([delta("first/0", 1), delta("bad/0", 13), delta("last/0", 2, FinishReason.LENGTH)])
    assert aborted == ["bad/0"]
    assert "bad/0" in caplog.text
    assert "KeyError: 13" in caplog.text
    with pytest.raises(RequestFailed, match="KeyError"):
        await anext(streams["bad"])
    assert (await anext(streams["last"])).finish_reason is FinishReason.LENGTH
    active.deliver([delta("bad/0", 3), delta("first/0", 4, FinishReason.LENGTH)])
    assert (await anext(streams["first"])).token_ids == (1, 4)
    assert len(active) == 0


async def test_what_was_read_before_the_fault_comes_first() -> None:
    active = ActiveRequests(abort=lambda _: None)
    stream = active.add("r/0", Text("r"))
    active.deliver([delta("r/0", 1), delta("r/0", 13)])
    assert (await anext(stream)).token_ids == (1,)
    with pytest.raises(RequestFailed):
        await anext(stream)
