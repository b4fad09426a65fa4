"""The cases behind "a thousand residents": throughput as more and more adapters share the GPU.

    python -m descant_bench.residents --model FOLDER --output FX [--counts 1 8 64 256 1000] [--zipf 0 1]

Writes FX/adapters/0000 ... (see `random_adapters`: each is an adapter of its own, on little disk) and for every count
and popularity a case, FX/residents-COUNT-uniform.jsonl and FX/residents-COUNT-zipf1.jsonl. Prompts are the same in all
of them; only the choice of adapters differs. Then

    python -m descant_bench.throughput --model FOLDER --adapters FX/adapters --roofline --requests FX/*.jsonl

measures them in one process. The warm-up run of a case brings its adapters to the GPU.
"""

import argparse
import random
from pathlib import Path

from descant_bench.random_adapters import modules_named, write_adapters
from descant_bench.recorded import Popularity, random_requests, write_requests
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig


def write_cases(args: argparse.Namespace, vocab_size: int) -> list[Path]:
    paths = []
    for popularity in (Popularity(exponent) for exponent in args.zipf):
        for count in args.counts:
            chosen = popularity.choose(args.num_requests, count, random.Random(args.seed + count))
            requests = random_requests(
                args.num_requests,
                args.prompt_tokens,
                args.max_tokens,
                vocab_size=vocab_size,
                adapters=chosen,
                seed=args.seed,
            )
            paths.append(args.output / f"residents-{count}-{popularity.name}.jsonl")
            write_requests(paths[-1], requests)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 64, 256, 1000])
    parser.add_argument("--zipf", type=float, nargs="+", default=[0.0, 1.0], help="exponents of popularity; 0: uniform")
    parser.add_argument("--num-requests", type=int, default=1000)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--modules", default="all", help="all, attention, or names like q_proj,v_proj")
    parser.add_argument("--files", type=int, default=4, help="distinct weight files; more adapters link to them")
    parser.add_argument("--generate-on", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = resolve(EngineConfig(model=args.model)).shape
    args.output.mkdir(parents=True, exist_ok=True)
    for path in write_cases(args, shape.vocab_size):
        print(path)
    write_adapters(
        args.output / "adapters",
        shape,
        max(args.counts),
        lora_rank=args.lora_rank,
        modules=modules_named(args.modules),
        num_files=args.files,
        device=args.generate_on,
    )
    print(args.output / "adapters")


if __name__ == "__main__":
    main()
