"""A folder may be written over at any moment; nobody may get tokens from weights that are not those of his digest."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest

from descant_engine import LLM, SamplingParams

PROMPT = [[5, 6, 7, 8, 9]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.mark.parametrize("successor", ["of the same shape", "of another shape"])
def test_a_folder_written_over_gives_an_error_or_the_new_adapter(
    tiny_llama: Path,
    tiny_adapters: dict[str, Path],
    random_adapter: Callable[..., Path],
    oracle: Callable[..., Any],
    tmp_path: Path,
    successor: str,
) -> None:
    folder = copytree(tiny_adapters["all"], tmp_path / "adapter")
    if successor == "of the same shape":
        new = random_adapter(tmp_path / "new", tiny_llama, seed=99, rank=8)
    else:
        new = tiny_adapters["patterns"]
    llm = LLM(str(tiny_llama), device="cpu", dtype="float32", enable_lora=True, max_model_len=64, num_blocks=64)
    llm.load_adapter("name", folder)
    rmtree(folder)
    copytree(new, folder)
    (refused,) = llm.generate(PROMPT, GREEDY, adapter="name", use_tqdm=False)
    assert refused.finish_reason == "error"
    assert "register the adapter again" in str(refused.error)
    llm.load_adapter("name", folder)
    (answer,) = llm.generate(PROMPT, GREEDY, adapter="name", use_tqdm=False)
    assert oracle(tiny_llama).agrees(PROMPT[0], list(answer.token_ids), new)
    llm.close()
