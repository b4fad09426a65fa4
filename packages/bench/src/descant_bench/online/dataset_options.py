"""Options that say what is asked, under vLLM's names, for each measurement that lets one choose."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from descant_bench.online.prompts import (
    PrefixRepetition,
    RandomPrompts,
    SampleRequest,
    ShareGpt,
    Tokenizer,
    TokenSource,
)
from descant_bench.option_types import at_least


def add_dataset_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset-name", default="random", choices=["random", "sharegpt", "prefix_repetition"])
    group.add_argument("--dataset-path", type=Path, metavar="FILE.json")
    group.add_argument("--num-prompts", type=at_least(1), default=1000)
    group.add_argument("--random-input-len", "--input-len", type=int, default=1024)
    group.add_argument("--random-output-len", "--output-len", type=int, default=128)
    group.add_argument("--random-range-ratio", type=float, default=0.0)
    group.add_argument("--random-prefix-len", type=int, default=0)
    group.add_argument("--sharegpt-output-len", type=int)
    group.add_argument("--prefix-repetition-prefix-len", type=int, default=256)
    group.add_argument("--prefix-repetition-suffix-len", type=int, default=256)
    group.add_argument("--prefix-repetition-num-prefixes", type=at_least(1), default=10)
    group.add_argument("--prefix-repetition-output-len", type=int, default=128)


def dataset_requests(
    args: argparse.Namespace, source: TokenSource, tokenizer: Tokenizer | None, rng: random.Random
) -> Iterator[SampleRequest]:
    """`tokenizer` counts the tokens of texts from a file.

    Raises:
        ValueError: an option is missing, or the file is not what it should be.
        OSError: it cannot be read.
    """
    match args.dataset_name:
        case "sharegpt":
            if args.dataset_path is None:
                raise ValueError("--dataset-name sharegpt needs the file: --dataset-path FILE.json")
            conversations = ShareGpt(path=args.dataset_path, output_len=args.sharegpt_output_len)
            return conversations.requests(args.num_prompts, tokenizer, rng)
        case "prefix_repetition":
            return PrefixRepetition(
                prefix_len=args.prefix_repetition_prefix_len,
                suffix_len=args.prefix_repetition_suffix_len,
                num_prefixes=args.prefix_repetition_num_prefixes,
                output_len=args.prefix_repetition_output_len,
            ).requests(args.num_prompts, source, rng)
        case _:
            return RandomPrompts(
                input_len=args.random_input_len,
                output_len=args.random_output_len,
                range_ratio=args.random_range_ratio,
                prefix_len=args.random_prefix_len,
            ).requests(args.num_prompts, source, rng)
