"""How tokens are guessed, on a command line: our options, or vLLM's one with everything in JSON."""

from typing import Any, Final

import click
import msgspec

from descant_engine.speculation.config import SpeculativeConfig, SpeculativeMethod, read_speculative_config
from descant_server.options import SPECULATION, Option, option

METHODS: Final = {"ngram": SpeculativeMethod.NGRAM, "draft": SpeculativeMethod.DRAFT_MODEL}

SPECULATION_OPTIONS: Final[tuple[Option, ...]] = (
    option(
        SPECULATION,
        "--speculative",
        type=click.Choice(list(METHODS)),
        help="Guess tokens, and check several in one step. ngram: what followed the same words before, in prompt or"
        " output; draft: what --draft-model says. Answers stay the same; where it does not pay it does nothing.",
    ),
    option(
        SPECULATION,
        "--draft-model",
        metavar="MODEL",
        help="A smaller model of the same vocabulary: a folder, a .gguf file or a hub id. Implies --speculative draft."
        " Its weights and its KV take memory.",
    ),
    option(
        SPECULATION,
        "--num-speculative-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most tokens guessed at once; how many it is goes by what pays. 15 of n-grams, 5 of a model by default.",
    ),
    option(
        SPECULATION,
        "--speculative-config",
        metavar="JSON",
        help='vLLM\'s form: {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}, or'
        ' {"model": ..., "num_speculative_tokens": 5}.',
    ),
)


def speculative_config(
    method: str | None, draft_model: str | None, num_tokens: int | None, in_json: str | None
) -> SpeculativeConfig | None:
    """Raises click.BadParameter for what contradicts itself or cannot be read."""
    if in_json is not None:
        if (method, draft_model, num_tokens) != (None, None, None):
            raise click.BadParameter("says it all: give no option beside it", param_hint="--speculative-config")
        return _read(in_json)
    if method is None and draft_model is None:
        if num_tokens is not None:
            raise click.BadParameter("needs --speculative", param_hint="--num-speculative-tokens")
        return None
    wanted = METHODS["draft" if method is None else method]
    if (wanted is SpeculativeMethod.DRAFT_MODEL) != (draft_model is not None):
        reason = "needs --draft-model" if draft_model is None else "ngram has no --draft-model"
        raise click.BadParameter(reason, param_hint="--speculative")
    try:
        return SpeculativeConfig(method=wanted, model=draft_model, num_speculative_tokens=num_tokens)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--num-speculative-tokens") from None


def _read(in_json: str) -> SpeculativeConfig:
    try:
        given: dict[str, Any] = msgspec.json.decode(in_json, type=dict[str, Any])
        return read_speculative_config(given)
    except (msgspec.MsgspecError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--speculative-config") from None
