"""What adapters do to each other: the cases behind "no cliff" and "fairness of adapters".

    python -m descant_bench.neighbours --model FOLDER --output FX [--rates 20 60 120]

FX/many.jsonl has one tenant use 255 adapters, all of his requests at once, and beside him another one's trickle to
adapter 0 and to the base, from a second before. Run with room for all and with room for 32 (`--max-loras 32`), the
trickle must not notice, and the whole be at most a quarter slower:

    python -m descant_bench.throughput --model FOLDER --adapters FX/adapters --requests FX/many.jsonl \
        --prepare [--max-loras 32]

FX/flood-RATE.jsonl sends RATE requests a second, nine of ten to one adapter; FX/calm-RATE.jsonl has only the others,
at the same moments. The group "others" must see its first tokens at about the same time in both. The adapters are
those of `descant_bench.residents`.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from descant_bench.recorded import RecordedRequest, random_requests, write_requests
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig

BURST_SECONDS = 12
"""How long the trickle beside the burst lasts,"""
FLOOD_SECONDS = 24
"""and a flood: p99 of its quiet ones should not be their slowest request."""
TRICKLE_PER_S = 2
"""To the base, and as many to adapter 0. Far less than half of what the device can do, which is a second tenant's; the
first one's own requests to the base would wait for their turn, one of 256."""
BURST_S = 1.0
"""When the burst comes: the trickle's adapter is in use by then."""
NUM_QUIET = 20
FLOOD = 0
"""The adapter that floods, or the trickle's; the quiet ones are those after it."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What all requests have in common."""

    vocab_size: int
    prompt_tokens: int
    max_tokens: int

    def requests(self, adapters: list[int | None], seed: int) -> list[RecordedRequest]:
        lengths = (len(adapters), self.prompt_tokens, self.max_tokens)
        return random_requests(*lengths, vocab_size=self.vocab_size, adapters=adapters, seed=seed)


def many(prompts: Prompts, num_adapters: int, each: int) -> list[RecordedRequest]:
    """`each` requests to every adapter but one at once, in a random order, and a trickle beside them."""
    order: list[int | None] = [*range(FLOOD + 1, num_adapters)] * each
    random.Random(1).shuffle(order)
    burst = prompts.requests(order, seed=2)
    trickle = prompts.requests([FLOOD, None] * (BURST_SECONDS * TRICKLE_PER_S), seed=3)
    names = ("resident", "base")
    return [replace(request, arrival_s=BURST_S, group="burst", tenant="burst") for request in burst] + [
        replace(request, arrival_s=index / (2 * TRICKLE_PER_S), group=names[index % 2], tenant="trickle")
        for index, request in enumerate(trickle)
    ]


def flood(prompts: Prompts, rate: float) -> tuple[list[RecordedRequest], list[RecordedRequest]]:
    """(the others, the flood): even arrivals, `rate` a second together, a tenth of them the others'."""
    num_others, num_flood = round(rate * FLOOD_SECONDS / 10), round(rate * FLOOD_SECONDS * 0.9)
    others = prompts.requests([FLOOD + 1 + index % NUM_QUIET for index in range(num_others)], seed=4)
    flooding = prompts.requests([FLOOD] * num_flood, seed=5)
    return (
        [replace(r, arrival_s=index * 10 / rate, group="others") for index, r in enumerate(others)],
        [replace(r, arrival_s=index / (0.9 * rate), group="flood") for index, r in enumerate(flooding)],
    )


def cases(
    prompts: Prompts, num_adapters: int, each: int, rates: list[float]
) -> Iterator[tuple[str, list[RecordedRequest]]]:
    yield "many", many(prompts, num_adapters, each)
    for rate in rates:
        others, flooding = flood(prompts, rate)
        yield f"calm-{rate:g}", others
        yield f"flood-{rate:g}", others + flooding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-adapters", type=int, default=256)
    parser.add_argument("--each", type=int, default=8, help="requests to each of them")
    parser.add_argument("--rates", type=float, nargs="+", default=[20, 60, 120])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=128)
    args = parser.parse_args()
    vocab_size = resolve(EngineConfig(model=args.model)).shape.vocab_size
    args.output.mkdir(parents=True, exist_ok=True)
    prompts = Prompts(vocab_size, args.prompt_tokens, args.max_tokens)
    for name, requests in cases(prompts, args.num_adapters, args.each, args.rates):
        write_requests(args.output / f"{name}.jsonl", requests)
        print(args.output / f"{name}.jsonl")


if __name__ == "__main__":
    main()
