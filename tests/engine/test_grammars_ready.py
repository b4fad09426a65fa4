"""What grammars need is loaded soon after the start, though nobody has asked for one."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from descant_engine import async_engine
from descant_engine.async_engine import AsyncEngine
from descant_engine.config import EngineConfig

SECONDS = 30.0


@pytest.mark.parametrize("delay", [0.1, 60.0])
async def test_a_sandbox_is_there_after_a_moment(
    delay: float, random_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_engine, "VOCABULARY_SECONDS", delay)
    config = EngineConfig(model=str(random_model("llama")), device="cpu", dtype="float32", num_blocks=16)
    engine = await AsyncEngine.start(config)
    try:
        for _ in range(int(SECONDS / 0.05) if delay < SECONDS else 10):
            if has_sandbox(engine.engine_pid):
                break
            await asyncio.sleep(0.05)
        assert has_sandbox(engine.engine_pid) == (delay < SECONDS)
    finally:
        await engine.close()


def has_sandbox(engine_pid: int) -> bool:
    children = [path.read_text().split() for path in Path(f"/proc/{engine_pid}/task").glob("*/children")]
    return any("descant_engine.grammar.sandbox" in command_of(pid) for pids in children for pid in pids)


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # gone
        return ""
