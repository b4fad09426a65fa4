"""The demo adapters that are committed, and the data and rules they were trained and scored with."""

import json
import re
from pathlib import Path
from random import Random

import pytest
from demo_tasks import TASKS, Example
from train_demo_adapters import BASE_MODEL, RECIPES

from descant_cli.up.options import find_model
from descant_engine.adapters.files import read_adapter
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig

ADAPTERS = Path(__file__).parents[2] / "demo" / "adapters"
WORD = re.compile(r"\w+")


def examples(name: str, split: str, count: int = 200) -> list[Example]:
    random = Random(f"test-{name}-{split}")
    return [TASKS[name].make(random, split) for _ in range(count)]  # type: ignore[arg-type]


def test_there_are_three() -> None:
    assert {path.name for path in ADAPTERS.iterdir() if path.is_dir()} == TASKS.keys() == RECIPES.keys()


@pytest.mark.parametrize("name", TASKS)
def test_wanted_answer_passes_every_measure_and_the_prompt_none(name: str) -> None:
    for example in examples(name, "held_out"):
        assert all(TASKS[name].score(example, example.answer).values()), example
        assert not any(TASKS[name].score(example, example.prompt).values()), example


@pytest.mark.parametrize("name", TASKS)
def test_answer_to_another_question_is_not_exact(name: str) -> None:
    first, *others = examples(name, "held_out")
    for other in others:
        assert TASKS[name].score(first, other.answer)["exact"] == (other.answer == first.answer)


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_makes_the_same_data(name: str) -> None:
    assert examples(name, "train", 20) == examples(name, "train", 20)


@pytest.mark.parametrize("name", TASKS)
def test_held_out_prompts_have_words_that_training_never_shows(name: str) -> None:
    seen = {word for example in examples(name, "train", 2000) for word in WORD.findall(example.prompt)}
    for example in examples(name, "held_out"):
        assert set(WORD.findall(example.prompt)) - seen, example.prompt


@pytest.mark.parametrize("name", TASKS)
def test_adapter_is_small_and_names_no_machine(name: str) -> None:
    folder = ADAPTERS / name
    assert (folder / "adapter_model.safetensors").stat().st_size < 4_000_000
    text = (folder / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == BASE_MODEL
    assert not re.search(r'"/|\\\\', text)


@pytest.mark.parametrize("name", TASKS)
def test_engine_can_serve_it_with_the_rank_of_its_recipe(name: str) -> None:
    shape = resolve(EngineConfig(model=find_model(None)[0], device="cpu")).shape
    manifest = read_adapter(ADAPTERS / name, shape, max_lora_rank=16)
    recipe = RECIPES[name].lora
    assert manifest.max_lora_rank == recipe.r
    targets = {module.module.name.lower() for module in manifest.modules}
    assert targets == set(recipe.target_modules or ())


def test_adapters_differ_in_rank_and_modules_and_one_has_rslora() -> None:
    loras = [recipe.lora for recipe in RECIPES.values()]
    assert len({lora.r for lora in loras}) == len(loras)
    assert len({frozenset(lora.target_modules or ()) for lora in loras}) == len(loras)
    assert sum(lora.use_rslora for lora in loras) == 1


@pytest.mark.parametrize("name", TASKS)
def test_committed_scores_are_far_above_the_base(name: str) -> None:
    scores = json.loads((ADAPTERS / name / "scores.json").read_text())["scores"]
    for measure, value in scores["adapter"].items():
        assert value >= 0.9
        assert value - max(scores["base"][measure], scores["base_with_instruction"][measure]) >= 0.5
