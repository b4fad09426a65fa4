"""The engine in its own process: real model, real processes, real sockets."""

import asyncio
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from descant_engine.adapters.manifest import AdapterManifest
from descant_engine.async_engine import AsyncEngine, EngineDraining
from descant_engine.config import EngineConfig
from descant_engine.frontend import Chat, PromptTooLong, UnknownModel
from descant_engine.outputs import RequestOutput
from descant_engine.request import FinishReason, Owner
from descant_engine.sampling_params import SamplingParams
from descant_engine.scheduler.admission import QueueFull, RequestRefused
from descant_engine.serving import engine_client
from descant_engine.serving.engine_client import EngineDead, EngineStartError
from descant_engine.serving.request_stream import RequestStream

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECONDS = 60.0
POOL_TOKENS = 256 * 16
LONG = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def model(random_model: Callable[..., Path]) -> Path:
    return random_model("llama", max_position_embeddings=1 << 18)


def engine_config(model: Path, **options: object) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        device="cpu",
        dtype="float32",
        **{"num_blocks": POOL_TOKENS // 16, "enable_lora": True, "max_num_seqs": 64} | options,  # type: ignore[arg-type]
    )


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(model: Path) -> AsyncIterator[AsyncEngine]:
    engine = await AsyncEngine.start(engine_config(model, max_num_queued_requests=80))
    yield engine
    await engine.close()


async def collect(stream: RequestStream) -> RequestOutput:
    """All outputs as one."""
    whole: RequestOutput | None = None
    async with asyncio.timeout(SECONDS):
        async for output in stream:
            whole = output if whole is None else whole.followed_by(output)
    assert whole is not None
    return whole


async def read_all(stream: RequestStream) -> None:
    async for _ in stream:
        pass


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - it may be another process's doing
            await asyncio.sleep(0.01)


async def assert_engine_is_idle(engine: AsyncEngine) -> None:
    """Nothing runs, nothing waits, and no block is held."""
    assert engine.num_unfinished_requests == 0
    await eventually(lambda: not engine.stats().num_running and not engine.stats().num_waiting)
    await eventually(lambda: engine.stats().block_usage == 0)


async def test_streams_text(engine: AsyncEngine) -> None:
    outputs = [output async for output in await engine.submit("Hello", SHORT)]
    token_ids = [token_id for output in outputs for token_id in output.token_ids]
    assert len(token_ids) == 8
    assert "".join(output.text for output in outputs) == engine.tokenizer.decode(token_ids, skip_special_tokens=True)
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert (outputs[-1].usage.prompt_tokens, outputs[-1].usage.completion_tokens) == (5, 8)
    assert all(output.finish_reason is None for output in outputs[:-1])


async def test_text_ids_and_chat_are_the_same_prompt(engine: AsyncEngine) -> None:
    text = "<user>Hi\n<assistant>"
    prompts = [text, engine.tokenizer.encode(text, add_special_tokens=False), Chat([{"role": "user", "content": "Hi"}])]
    texts = [(await collect(await engine.submit(prompt, SHORT))).text for prompt in prompts]
    assert len(set(texts)) == 1


async def test_fifty_streams_at_once_give_what_each_gives_alone(engine: AsyncEngine) -> None:
    prompts = [f"{number} bottles" for number in range(50)]
    alone = [await collect(await engine.submit(prompt, SHORT)) for prompt in prompts[::10]]
    streams = [await engine.submit(prompt, SHORT) for prompt in prompts]
    together = await asyncio.gather(*(collect(stream) for stream in streams))
    assert [output.token_ids for output in together[::10]] == [output.token_ids for output in alone]
    assert all(output.usage.completion_tokens == 8 for output in together)
    await assert_engine_is_idle(engine)


async def test_a_stop_string_ends_the_request_in_the_engine(engine: AsyncEngine) -> None:
    whole = await collect(await engine.submit("Stop", SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)))
    stop = whole.text[20:22]
    params = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True, stop=(stop,))
    stopped = await collect(await engine.submit("Stop", params))
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop)
    assert stopped.usage.completion_tokens == len(stopped.token_ids) < 200
    await assert_engine_is_idle(engine)


async def test_a_slow_reader_gets_merged_outputs(engine: AsyncEngine) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    stream = await engine.submit("Slow", params)
    await eventually(lambda: engine.num_unfinished_requests == 0)
    outputs = [output async for output in stream]
    assert len(outputs) == 1
    assert len(outputs[0].token_ids) == 100
    assert outputs[0].finish_reason is FinishReason.LENGTH


async def test_closing_the_stream_ends_the_request(engine: AsyncEngine) -> None:
    stream = await engine.submit("Close", LONG)
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await assert_engine_is_idle(engine)


async def test_leaving_the_with_block_ends_the_request(engine: AsyncEngine) -> None:
    async with await engine.submit("With", LONG) as stream:
        async for _ in stream:
            break
    await assert_engine_is_idle(engine)


async def test_cancelling_the_reader_ends_the_request(engine: AsyncEngine) -> None:
    stream = await engine.submit("Cancel", LONG)
    await anext(stream)
    reader = asyncio.create_task(collect(stream))
    await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await assert_engine_is_idle(engine)


async def test_dropping_the_stream_ends_the_request(engine: AsyncEngine) -> None:
    stream = await engine.submit("Drop", LONG)
    await anext(stream)
    del stream
    gc.collect()
    await assert_engine_is_idle(engine)


async def test_streams_left_at_random_cost_the_others_nothing(engine: AsyncEngine) -> None:
    rng = random.Random(7)
    alone = await collect(await engine.submit("Stay", SHORT))

    async def leave(number: int) -> None:
        stream = await engine.submit(f"Leave {number}", LONG)
        await asyncio.sleep(rng.random() / 4)
        match number % 3:
            case 0:
                await stream.aclose()
            case 1:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(rng.random() / 4):
                        await collect(stream)
            case 2:
                del stream

    async def stay() -> RequestOutput:
        await asyncio.sleep(rng.random() / 4)
        return await collect(await engine.submit("Stay", SHORT))

    leaving = [asyncio.create_task(leave(number)) for number in range(60)]
    stayed = await asyncio.gather(*(stay() for _ in range(10)))
    await asyncio.gather(*leaving)
    assert {output.token_ids for output in stayed} == {alone.token_ids}
    gc.collect()
    await assert_engine_is_idle(engine)


async def test_closing_wakes_whoever_waits(engine: AsyncEngine) -> None:
    blocker = [await engine.submit("Block", LONG) for _ in range(2)]
    stream = await engine.submit("Wait", LONG)
    reader = asyncio.create_task(read_all(stream))
    await asyncio.sleep(0.02)
    await stream.aclose()
    async with asyncio.timeout(SECONDS):
        await reader
    for other in blocker:
        await other.aclose()
    await assert_engine_is_idle(engine)


async def test_a_request_id_may_come_again(engine: AsyncEngine) -> None:
    alone = await collect(await engine.submit("Three", SHORT))
    async with await engine.submit("One", LONG, request_id="same") as stream:
        await anext(stream)
        assert stream.request_id == "same"
        # At the same time, and while the last outputs of the first are still on their way.
        together = await collect(await engine.submit("Three", SHORT, request_id="same"))
    after = await collect(await engine.submit("Three", SHORT, request_id="same"))
    assert alone.token_ids == together.token_ids == after.token_ids
    assert after.request_id == "same"


async def test_bad_requests_are_refused_and_cost_nothing(engine: AsyncEngine) -> None:
    with pytest.raises(PromptTooLong):
        await engine.submit([1] * (1 << 18), SHORT)
    with pytest.raises(UnknownModel, match="'nobody'"):
        await engine.submit("Hi", SHORT, adapter="nobody")
    # It fits the context, but not the pool: that is known in the engine only.
    stream = await engine.submit([1] * (POOL_TOKENS + 16), SHORT)
    with pytest.raises(RequestRefused, match=str(POOL_TOKENS + 16)):
        await anext(stream)
    await assert_engine_is_idle(engine)


async def test_what_cannot_cross_the_border_leaves_nothing_behind(engine: AsyncEngine) -> None:
    with pytest.raises((ValueError, OverflowError)):
        await engine.submit("Hi", SHORT, owner=Owner(priority=1 << 80))
    with pytest.raises(ValueError, match="surrogates"):
        await engine.submit("Hi", SHORT, owner=Owner(tenant_salt="\ud800"))
    await assert_engine_is_idle(engine)


async def test_a_signal_from_the_terminal_is_for_the_front(engine: AsyncEngine) -> None:
    os.kill(engine.engine_pid, signal.SIGINT)
    assert (await collect(await engine.submit("Hi", SHORT))).finish_reason is FinishReason.LENGTH


async def test_a_full_queue_is_the_streams_error(engine: AsyncEngine) -> None:
    streams = [await engine.submit(f"Queue {number}", LONG) for number in range(64 + 80 + 20)]
    readers = [asyncio.create_task(collect(stream)) for stream in streams]
    async with asyncio.timeout(SECONDS):
        ended, running = await asyncio.wait(readers, return_when=asyncio.FIRST_EXCEPTION)
    assert isinstance(ended.pop().exception(), QueueFull)
    assert len(running) >= 64
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    await assert_engine_is_idle(engine)


async def test_a_huge_prompt_does_not_hold_up_the_loop(engine: AsyncEngine) -> None:
    text = "Die Würde des Menschen ist unantastbar. " * 6000

    async def worst_gap(prompt: str) -> float:
        encoding = asyncio.create_task(engine.encode(prompt))
        worst, last = 0.0, time.perf_counter()
        while not encoding.done():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        assert len(encoding.result()) == len(prompt.encode())
        return worst

    # Other processes may hold the core now and then; encoding inline would hold it every time.
    assert min([await worst_gap(text) for _ in range(3)]) < 0.05


async def test_adapters_load_serve_and_unload(
    engine: AsyncEngine, model: Path, random_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    first = random_adapter(tmp_path / "first", model, seed=1, rank=4)
    second = random_adapter(tmp_path / "second", model, seed=2, rank=8)
    base = await collect(await engine.submit("Adapt", SHORT))
    old = await engine.load_adapter("legal", first)
    of_first = await collect(await engine.submit("Adapt", SHORT, adapter="legal"))
    running = await engine.submit("Adapt", SHORT, adapter="legal")
    new = await engine.load_adapter("legal", second)
    assert old.digest != new.digest
    assert engine.adapters == {"legal": new}
    of_second = await collect(await engine.submit("Adapt", SHORT, adapter="legal"))
    assert (await collect(running)).token_ids == of_first.token_ids
    assert len({base.token_ids, of_first.token_ids, of_second.token_ids}) == 3
    await eventually(lambda: [adapter.digest for adapter in engine.stats().adapters] == [new.digest])
    await engine.unload_adapter("legal")
    with pytest.raises(UnknownModel):
        await engine.submit("Adapt", SHORT, adapter="legal")
    await eventually(lambda: engine.stats().adapters == ())


async def test_a_bad_adapter_is_refused_and_the_name_kept(
    engine: AsyncEngine, model: Path, random_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    good = random_adapter(tmp_path / "good", model, seed=1, rank=4)
    await engine.load_adapter("tone", good)
    broken = Path(shutil.copytree(good, tmp_path / "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        await engine.load_adapter("tone", broken)
    assert (await collect(await engine.submit("Hi", SHORT, adapter="tone"))).finish_reason is FinishReason.LENGTH
    await engine.unload_adapter("tone")


@pytest.fixture
def slow_look(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], threading.Event]]:
    """Holds up whoever looks at a folder, until the event is set."""
    read, may_go_on = engine._frontend.read_adapter, threading.Event()

    def hold_up(folder: Path) -> threading.Event:
        def read_adapter(asked: str | Path) -> AdapterManifest:
            assert asked != folder or may_go_on.wait(SECONDS)
            return read(asked)

        monkeypatch.setattr(engine._frontend, "read_adapter", read_adapter)
        return may_go_on

    yield hold_up
    may_go_on.set()


async def test_a_load_wins_over_the_look_at_what_was_offered(
    engine: AsyncEngine,
    model: Path,
    random_adapter: Callable[..., Path],
    slow_look: Callable[[Path], threading.Event],
    tmp_path: Path,
) -> None:
    old = random_adapter(tmp_path / "old", model, seed=1, rank=4)
    new = random_adapter(tmp_path / "new", model, seed=2, rank=4)
    may_go_on = slow_look(old)
    engine.offer_adapters({"tone": old})
    asked = asyncio.create_task(engine.submit("Hi", SHORT, adapter="tone"))
    await asyncio.sleep(0)
    loaded = await engine.load_adapter("tone", new)
    may_go_on.set()
    of_new = await collect(await engine.submit("Hi", SHORT, adapter="tone"))
    assert (await collect(await asked)).token_ids == of_new.token_ids
    assert engine.adapters == {"tone": loaded}
    await engine.unload_adapter("tone")
    await eventually(lambda: engine.stats().adapters == ())


async def unload_during_look(engine: AsyncEngine, folder: Path, may_go_on: threading.Event) -> None:
    engine.offer_adapters({"tone": folder})
    asked = asyncio.create_task(engine.submit("Hi", SHORT, adapter="tone"))
    await asyncio.sleep(0)
    await engine.unload_adapter("tone")
    may_go_on.set()
    with pytest.raises(UnknownModel):
        await asked


async def test_an_unload_wins_over_the_look_at_what_was_offered(
    engine: AsyncEngine,
    model: Path,
    random_adapter: Callable[..., Path],
    slow_look: Callable[[Path], threading.Event],
    tmp_path: Path,
) -> None:
    folder = random_adapter(tmp_path / "old", model, seed=1, rank=4)
    await unload_during_look(engine, folder, slow_look(folder))
    assert engine.adapters == {}


async def test_what_is_wrong_with_an_adapter_is_forgotten_with_its_offer(
    engine: AsyncEngine, slow_look: Callable[[Path], threading.Event], tmp_path: Path
) -> None:
    await unload_during_look(engine, tmp_path, slow_look(tmp_path))
    assert engine.refused_adapters == {}


async def test_an_offer_is_kept_where_another_load_fails(
    engine: AsyncEngine, model: Path, random_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    engine.offer_adapters({"tone": random_adapter(tmp_path / "offered", model, seed=1, rank=4)})
    with pytest.raises(ValueError, match="adapter_config"):
        await engine.load_adapter("tone", tmp_path)
    await collect(await engine.submit("Hi", SHORT, adapter="tone"))
    await engine.unload_adapter("tone")


@pytest.mark.slow
async def test_a_real_model_answers(smollm2_path: Path) -> None:
    engine = await AsyncEngine.start(EngineConfig(model=str(smollm2_path), device="cpu", num_blocks=64))
    question = Chat([{"role": "user", "content": "What is the capital of France? Answer in one word."}])
    try:
        answer = await collect(await engine.submit(question, SamplingParams(temperature=0.0, max_tokens=20)))
        cut = await collect(
            await engine.submit(question, SamplingParams(temperature=0.0, max_tokens=20, stop=("aris",)))
        )
    finally:
        await engine.close()
    assert "Paris" in answer.text
    assert answer.finish_reason is FinishReason.STOP
    assert cut.text == answer.text[: answer.text.index("aris")]


async def test_drains_and_closes(model: Path) -> None:
    engine = await AsyncEngine.start(engine_config(model))
    pid = engine.engine_pid
    short, long = await engine.submit("Drain", SHORT), await engine.submit("Drain", LONG)
    assert not await engine.drain(0.0)
    with pytest.raises(EngineDraining):
        await engine.submit("Late", SHORT)
    assert (await collect(short)).finish_reason is FinishReason.LENGTH
    await long.aclose()
    assert await engine.drain(SECONDS)
    unread = asyncio.create_task(engine.close())
    async with asyncio.timeout(SECONDS):
        await unread
    assert not is_alive(pid)
    assert not engine.is_healthy


async def test_a_killed_engine_fails_every_stream(model: Path) -> None:
    engine = await AsyncEngine.start(engine_config(model))
    streams = [await engine.submit(f"Kill {number}", LONG) for number in range(5)]
    await anext(streams[0])
    readers = [asyncio.create_task(collect(stream)) for stream in streams]
    assert engine.is_healthy
    os.kill(engine.engine_pid, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        results = await asyncio.gather(*readers, return_exceptions=True)
    assert all(isinstance(result, EngineDead) and "SIGKILL" in str(result) for result in results)
    assert not engine.is_healthy
    with pytest.raises(EngineDead, match="SIGKILL"):
        await engine.submit("Too late", SHORT)
    await engine.close()


async def test_a_model_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="no-such-model"):
        await AsyncEngine.start(EngineConfig(model=str(tmp_path / "no-such-model"), device="cpu"))


async def test_an_engine_that_hangs_is_ended_by_force(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "EXIT_SECONDS", 0.3)
    engine = await AsyncEngine.start(engine_config(model))
    stream = await engine.submit("Hang", LONG)
    os.kill(engine.engine_pid, signal.SIGSTOP)
    async with asyncio.timeout(SECONDS):
        await engine.close()
        with pytest.raises(EngineDead, match="closed"):
            await collect(stream)
    assert not is_alive(engine.engine_pid)


@pytest.mark.parametrize("seconds", [0.0, 0.3])
async def test_cancelling_the_start_leaves_nothing_running(model: Path, seconds: float) -> None:
    others = children_of(os.getpid())
    starting = asyncio.create_task(AsyncEngine.start(engine_config(model)))
    await eventually(lambda: children_of(os.getpid()) != others)
    (pid,) = children_of(os.getpid()) - others
    await asyncio.sleep(seconds)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: not is_alive(pid))


PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from descant_engine.async_engine import AsyncEngine
    from descant_engine.config import EngineConfig

    async def main():
        engine = await AsyncEngine.start(EngineConfig(model=sys.argv[1], device="cpu", num_blocks=64))
        print("ready", flush=True)
        await asyncio.sleep(60)

    asyncio.run(main())
    """
)


@pytest.mark.parametrize("when", ["loading", "ready"])
async def test_the_engine_dies_with_its_parent(model: Path, when: str) -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, str(model), stdout=subprocess.PIPE)
    try:
        await eventually(lambda: bool(children_of(parent.pid)))
        (child,) = children_of(parent.pid)
        if when == "ready":
            assert parent.stdout is not None
            async with asyncio.timeout(60):
                assert await parent.stdout.readline() == b"ready\n"
        else:
            await asyncio.sleep(0.5)
        assert is_alive(child)
    finally:
        parent.kill()
        await parent.wait()
    start = time.monotonic()
    await eventually(lambda: not is_alive(child))
    assert time.monotonic() - start < 3.0


def children_of(pid: int) -> set[int]:
    """The engine processes that a process has started."""
    found = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    return {child for child in map(int, found.split()) if is_engine(child)}


def is_engine(pid: int) -> bool:
    try:
        return b"descant_engine.serving.engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def is_alive(pid: int) -> bool:
    """A zombie is dead; whether somebody reaps it is not ours to know."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text().lower()
    except OSError:
        return False
