"""What text completions have of their own."""

import math

import pytest

from .asking import Choice, assert_refused
from .model_folder import token_id
from .option import Status, refuses
from .sampling_options import COMPLETIONS
from .stack import Stack


@COMPLETIONS.works("prompt", "A text, token ids, or up to 256 of either; choices come in their order.")
def prompt(stack: Stack) -> None:
    ask = stack.completions.ask
    hello = ask(prompt="Hello")
    ids = [token_id(letter) for letter in "Hello"]
    assert ask(prompt=ids).text == ask(prompt=[ids]).text == ask(prompt=["Hello"]).text == hello.text
    both = ask(prompt=["Hello", "Bye"])
    assert both.texts == [hello.text, ask(prompt="Bye").text]
    assert (both.usage.prompt_tokens, both.num_tokens) == (8, 16)
    assert_refused(stack.completions.create, "prompt", [])


@COMPLETIONS.works(
    "echo", "The prompt goes before the output, in text and log-probabilities; alone if `max_tokens` is 0."
)
def echo(stack: Stack) -> None:
    ask = stack.completions.ask
    assert ask(echo=True).text == "Hello" + ask().text
    echoed = ask(echo=True, logprobs=1).choices[0]
    assert len(echoed.tokens) == 5 + 8
    assert echoed.logprobs[0] is None
    assert echoed.text_offsets == list(range(13))
    alone = stack.completions.whole(echo=True, logprobs=0, max_tokens=0)
    assert (alone.text, alone.num_tokens) == ("Hello", 0)
    assert alone.choices[0].logprobs[1:] == pytest.approx(echoed.logprobs[1:5], abs=1e-4)


@COMPLETIONS.works(
    "logprobs",
    "0 to 20 (OpenAI: 5) of the likeliest tokens beside each; of the model itself, before penalties and masks.",
)
def logprobs(stack: Stack) -> None:
    for count in (0, 3):
        (choice,) = stack.completions.ask(logprobs=count).choices
        assert len(choice.tokens) == len(choice.logprobs) == len(choice.text_offsets) == 8
        assert_scores(choice, count)
    assert_refused(stack.completions.create, "logprobs", 21)


def assert_scores(choice: Choice, count: int) -> None:
    """A greedy output's tokens are the likeliest; no place has more than all probability."""
    for token, logprob, top in zip(choice.tokens, choice.logprobs, choice.top, strict=True):
        assert logprob is not None
        assert logprob < 0
        assert len(top) in (count, count + 1), "the token itself may come on top"
        assert sum(math.exp(each) for each in top.values()) <= 1
        if count:
            assert max(top, key=lambda name: top[name]) == token
            assert top[token] == pytest.approx(logprob)


@COMPLETIONS.works("best_of", "The `n` outputs with the highest mean log-probability.")
def best_of(stack: Stack) -> None:
    create = stack.completions.whole
    all_four = create(temperature=1, n=4, logprobs=0)
    best = create(temperature=1, n=2, best_of=4, logprobs=0)
    means = sorted((sum(filter(None, each.logprobs)) / 8 for each in all_four.choices), reverse=True)
    assert [sum(filter(None, each.logprobs)) / 8 for each in best.choices] == pytest.approx(means[:2], abs=1e-4)
    assert best.num_tokens == 4 * 8
    assert_refused(stack.completions.create, "best_of", 1, n=2)


@COMPLETIONS.works("add_special_tokens", "Whether a text gets the tokenizer's begin token; true unless said otherwise.")
def add_special_tokens(stack: Stack) -> None:
    counts = [stack.completions.whole(add_special_tokens=given).usage.prompt_tokens for given in (True, False)]
    assert counts == [5, 5], "the suite's model has no begin token"


def suffix(stack: Stack) -> None:
    refuses(stack.completions, "suffix", "and so on", ("",))


def prompt_embeds(stack: Stack) -> None:
    refuses(stack.completions, "prompt_embeds", "AAAA")


COMPLETIONS.add("suffix", Status.REFUSED, "Filling in the middle.", suffix)
COMPLETIONS.add("prompt_embeds", Status.REFUSED, "", prompt_embeds)
