"""The engine process's loop, over a real socket pair, with an engine that does as the test says."""

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.engine import Refusal as LateRefusal
from descant_engine.grammar.spec import GrammarRefused
from descant_engine.request import EngineRequest, FinishReason, TokenDelta
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.scheduler.stats import NO_DRAFTS, SchedulerStats
from descant_engine.serving import engine_process
from descant_engine.serving.engine_process import Channel, FrontGone, run, serve
from descant_engine.serving.messages import (
    Abort,
    AdapterAnswer,
    Deltas,
    Fatal,
    Refusal,
    RegisterAdapter,
    RemoveAdapter,
    Shutdown,
    Stats,
    Submit,
    SubmitRefused,
    ToEngine,
    ToFront,
    frame,
    front_reader,
)

SECONDS = 10.0


@dataclass
class CountingEngine:
    """Gives every request 0, 1, 2, ... up to its max_tokens, a token a step."""

    tokens_per_step: int = 1
    submit_error: Exception | None = None
    step_error: Exception | None = None
    adapters: set[str] = field(default_factory=set)
    num_steps: int = 0
    is_closed: bool = False
    num_to_prepare: int = 0
    spare_s: float = 0.0
    num_looks_at_spare: int = 0
    late_refusals: list[LateRefusal] = field(default_factory=list)
    running: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def seconds_to_spare(self) -> float:
        self.num_looks_at_spare += 1
        return self.spare_s

    def submit(self, request: EngineRequest) -> None:
        if self.submit_error is not None:
            raise self.submit_error
        assert request.params.max_tokens is not None
        self.running[request.request_id] = (0, request.params.max_tokens)

    def abort(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    def take_refusals(self) -> list[LateRefusal]:
        refusals, self.late_refusals = self.late_refusals, []
        return refusals

    def register_adapter(self, manifest: AdapterManifest) -> None:
        if manifest.digest == "too-large":
            raise ValueError("rank 4096 never fits")
        self.adapters.add(manifest.digest)

    def remove_adapter(self, digest: str) -> None:
        self.adapters.discard(digest)

    def step(self) -> list[TokenDelta]:
        if self.step_error is not None:
            raise self.step_error
        self.num_steps += 1
        return [self._advance(request_id) for request_id in list(self.running)]

    def prepare(self) -> bool:
        self.num_to_prepare -= 1
        return self.num_to_prepare > 0

    def _advance(self, request_id: str) -> TokenDelta:
        start, limit = self.running[request_id]
        end = min(start + self.tokens_per_step, limit)
        self.running[request_id] = (end, limit)
        finish = FinishReason.LENGTH if end == limit else None
        if finish is not None:
            del self.running[request_id]
        return TokenDelta(request_id, list(range(start, end)), finish, None, 0)

    def stats(self) -> SchedulerStats:
        counts = dict.fromkeys(SchedulerStats.__dataclass_fields__, 0)
        others = {"num_running": len(self.running), "adapters": (), "drafts": NO_DRAFTS}
        return SchedulerStats(**counts | others)  # type: ignore[arg-type]

    def close(self) -> None:
        self.is_closed = True


class Front:
    """The other end of the socket, and the loop in a thread."""

    def __init__(self, engine: CountingEngine, loop: "object" = serve) -> None:
        self.socket, engine_end = socket.socketpair()
        self.socket.settimeout(SECONDS)
        self.engine = engine
        self.channel = Channel(engine_end)
        self.ended_with: object = None
        self._engine_end = engine_end
        self._reader = front_reader()
        self._messages: Iterator[ToFront] = iter(())
        self._thread = threading.Thread(target=self._run, args=(loop,), daemon=True)
        self._thread.start()

    def _run(self, loop) -> None:
        try:
            self.ended_with = loop(self.engine, self.channel)
        except FrontGone as error:
            self.ended_with = error

    def send(self, *messages: ToEngine) -> None:
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def receive(self) -> ToFront:
        """The next message that is not Stats."""
        while True:
            for message in self._messages:
                if not isinstance(message, Stats):
                    return message
            self._messages = self._reader.feed(self.socket.recv(1 << 20))

    def receive_stats(self) -> SchedulerStats:
        while True:
            for message in self._messages:
                if isinstance(message, Stats):
                    return message.stats
            self._messages = self._reader.feed(self.socket.recv(1 << 20))

    def tokens_of(self, request_id: str) -> list[int]:
        """All tokens until the request ends."""
        token_ids: list[int] = []
        while True:
            message = self.receive()
            assert isinstance(message, Deltas)
            for delta in message.deltas:
                if delta.request_id == request_id:
                    token_ids += delta.token_ids
                    if delta.finish_reason is not None:
                        return token_ids

    def join(self) -> object:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self.ended_with

    def close(self) -> None:
        self.socket.close()
        self._thread.join(SECONDS)
        self._engine_end.close()


@pytest.fixture
def front() -> Iterator[Front]:
    front = Front(CountingEngine())
    yield front
    front.close()


def request(request_id: str, max_tokens: int) -> Submit:
    return Submit(
        EngineRequest(request_id=request_id, prompt_token_ids=(1,), params=SamplingParams(max_tokens=max_tokens))
    )


def manifest(digest: str) -> RegisterAdapter:
    return RegisterAdapter(AdapterManifest(digest=digest, path="/a", modules=()))  # type: ignore[arg-type]


def eventually(condition, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_serves_requests_and_rests_between_them(front: Front) -> None:
    front.send(request("a", 3))
    assert front.tokens_of("a") == [0, 1, 2]
    assert front.engine.num_steps == 3
    time.sleep(0.05)
    assert front.engine.num_steps == 3
    front.send(request("b", 2))
    assert front.tokens_of("b") == [0, 1]


def test_prepares_while_nobody_waits_and_then_rests() -> None:
    front = Front(CountingEngine(num_to_prepare=3))
    assert eventually(lambda: front.engine.num_to_prepare == 0)
    front.send(request("a", 2))
    assert front.tokens_of("a") == [0, 1]
    time.sleep(0.05)
    assert front.engine.num_to_prepare == 0
    front.send(Shutdown())
    front.join()


def test_work_comes_before_preparing() -> None:
    engine = CountingEngine(num_to_prepare=2**30)
    engine.running["endless"] = (0, 2**30)
    front = Front(engine)
    assert isinstance(front.receive(), Deltas)
    assert engine.num_to_prepare == 2**30
    front.send(Shutdown())
    front.join()


def test_spare_time_is_slept_through_though_something_is_left_to_prepare() -> None:
    engine = CountingEngine(num_to_prepare=2**30, spare_s=SECONDS)
    engine.running["endless"] = (0, 2**30)
    front = Front(engine)
    assert eventually(lambda: engine.num_looks_at_spare > 0)
    time.sleep(0.05)
    assert engine.num_looks_at_spare <= 2
    front.send(Shutdown())
    front.join()


def test_messages_are_heeded_between_steps(front: Front) -> None:
    front.send(request("endless", 2**30))
    assert isinstance(front.receive(), Deltas)
    front.send(Abort("endless"))
    assert eventually(lambda: not front.engine.has_work)


def test_shutdown_ends_the_loop_in_the_middle_of_work(front: Front) -> None:
    front.send(request("endless", 2**30), Shutdown())
    assert front.join() is None


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (QueueFull("8 wait"), Refusal.QUEUE_FULL),
        (RequestRefused("9 > 8"), Refusal.NEVER_FITS),
        (ValueError("odd"), Refusal.NEVER_FITS),
    ],
)
def test_a_refused_request_is_answered_and_costs_nobody_anything(
    front: Front, error: Exception, refusal: Refusal
) -> None:
    front.engine.submit_error = error
    front.send(request("a", 3))
    assert front.receive() == SubmitRefused("a", refusal, str(error))
    front.engine.submit_error = None
    front.send(request("b", 3))
    assert front.tokens_of("b") == [0, 1, 2]


def test_adapters_are_answered(front: Front) -> None:
    front.send(manifest("d1"), manifest("too-large"))
    assert front.receive() == AdapterAnswer("d1", None)
    assert front.receive() == AdapterAnswer("too-large", "rank 4096 never fits")
    front.send(RemoveAdapter("d1"))
    assert eventually(lambda: not front.engine.adapters)


def test_a_front_that_does_not_read_does_not_stop_the_engine() -> None:
    front = Front(CountingEngine(tokens_per_step=1000))
    front.send(request("a", 3_000_000))
    # Several megabytes: far more than the socket takes.
    assert eventually(lambda: front.engine.num_steps == 3000)
    assert front.tokens_of("a") == list(range(3_000_000))
    front.close()


def test_a_front_that_is_gone_ends_the_loop(front: Front) -> None:
    front.send(request("endless", 2**30))
    front.receive()
    front.socket.close()
    assert isinstance(front.join(), FrontGone)


def test_an_idle_loop_ends_with_its_front(front: Front) -> None:
    front.socket.close()
    assert isinstance(front.join(), FrontGone)


def test_stats_follow_every_change_within_moments(front: Front) -> None:
    front.send(request("endless", 2**30))
    assert front.receive_stats().num_running == 1
    front.send(Abort("endless"))
    deadline = time.monotonic() + SECONDS
    while front.receive_stats().num_running:
        assert time.monotonic() < deadline


def test_a_step_that_fails_is_the_end_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CountingEngine(step_error=RuntimeError("device lost"))
    monkeypatch.setattr(engine_process, "start", lambda _: engine)
    front = Front(engine, lambda _, channel: run(channel))
    front.send(request("a", 1))
    assert front.receive() == Fatal("RuntimeError: device lost")
    assert front.join() == engine_process.EXIT_FAILED
    assert engine.is_closed
    front.close()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("GPT2LMHeadModel is not supported"), "GPT2LMHeadModel is not supported"),
        (MemoryError(), "not enough memory"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_failed_start_is_reported(monkeypatch: pytest.MonkeyPatch, error: Exception, text: str) -> None:
    def fail(_: Channel) -> None:
        raise error

    monkeypatch.setattr(engine_process, "start", fail)
    front = Front(CountingEngine(), lambda _, channel: run(channel))
    assert front.receive() == Fatal(text)
    assert front.join() == engine_process.EXIT_FAILED
    front.close()


def test_request_whose_grammar_turns_out_impossible_is_refused_later(front: Front) -> None:
    front.engine.late_refusals.append(LateRefusal("a", GrammarRefused("no finite value satisfies it")))
    front.send(request("b", max_tokens=1))
    messages = [front.receive() for _ in range(2)]
    assert SubmitRefused("a", Refusal.GRAMMAR, "no finite value satisfies it") in messages
