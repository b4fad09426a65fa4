"""Drafts in the scheduler: whatever is guessed, rightly or wrongly, outputs are what they are without.

The runner of these tests checks that every token's whole past is where its block table says, so a rejected draft that
was left behind, or cached as a prefix, would be found.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from descant_engine.request import FinishReason, Request
from descant_engine.speculation.proposal import Proposal
from descant_engine.speculation.speculation import Speculation

VOCAB_SIZE = 23


class Guesser:
    """Knows every output, and is wrong in some places."""

    makes_work = False

    def __init__(self, share_right: float, seed: int = 0) -> None:
        self.outputs: dict[str, list[int]] = {}
        self._share_right = share_right
        self._rng = random.Random(seed)

    def propose(self, request: Request, max_tokens: int) -> Proposal:
        start = len(request.output_token_ids)
        rest = self.outputs[request.request_id][start : start + max_tokens]
        # Guesses go on beyond the end, as a real proposer's do.
        rest += [1] * (max_tokens - len(rest))
        guess = [t if self._rng.random() < self._share_right else self._rng.randrange(VOCAB_SIZE) for t in rest]
        return Proposal(max_tokens, tuple(guess))

    def forget(self, request_id: str) -> None:
        pass


def eager(guesser: Guesser, max_tokens: int) -> Speculation:
    return Speculation(guesser, max_tokens, adaptive=False)


def submit(engine, guesser, request_id, prompt, **params):
    spec = engine.add(request_id, prompt, **params)
    guesser.outputs[request_id] = engine.foretold(spec)
    return spec


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize(("share_right", "least_accepted"), [(0.0, 0.0), (0.7, 0.2), (1.0, 0.8)])
def test_outputs_are_the_same(engine_of, steps_ahead, share_right, least_accepted):
    guesser = Guesser(share_right)
    engine = engine_of(
        40, steps_ahead=steps_ahead, speculation=eager(guesser, 5), max_num_seqs=3, max_num_batched_tokens=64
    )
    specs = [
        submit(engine, guesser, f"r{i}", range(i, i + 3 + 2 * i), max_tokens=20, ignore_eos=i % 2 == 0)
        for i in range(6)
    ]
    engine.run()
    for spec in specs:
        engine.check_output(spec)
    engine.check_is_idle()
    drafts = engine.scheduler.stats().drafts
    assert drafts.num_draft_tokens > 50
    assert sum(drafts.num_accepted_by_place) == drafts.num_accepted_tokens
    assert least_accepted <= drafts.num_accepted_tokens / drafts.num_draft_tokens < least_accepted + 0.3


def test_right_drafts_save_steps(engine_of):
    guesser = Guesser(1.0)
    engine = engine_of(40, speculation=eager(guesser, 7), max_num_batched_tokens=64)
    spec = submit(engine, guesser, "a", [1, 2, 3], max_tokens=33, ignore_eos=True)
    assert engine.run() <= 1 + 33 / 8 + 1
    engine.check_output(spec)
    assert engine.scheduler.stats().drafts.num_accepted_tokens == 28


def test_a_stop_token_within_a_right_draft_ends_the_output(engine_of):
    """The rest of the draft is right too, and is not part of the output."""
    guesser = Guesser(1.0)
    engine = engine_of(40, speculation=eager(guesser, 10), max_num_batched_tokens=64)
    endless = engine.foretold(engine.add("x", [4, 5], max_tokens=20, ignore_eos=True))
    engine.scheduler.abort("x")
    stop = next(token for i, token in enumerate(endless) if i >= 4 and token not in endless[:i])
    spec = engine.add("a", [4, 5], max_tokens=20, ignore_eos=True, stop_token_ids=(stop,))
    guesser.outputs["a"] = endless
    engine.run()
    engine.check_output(spec)
    assert engine.finished["a"].finish_reason is FinishReason.STOP
    assert len(engine.outputs["a"]) < 20


def test_min_tokens_within_a_draft(engine_of):
    guesser = Guesser(1.0)
    engine = engine_of(40, speculation=eager(guesser, 10), max_num_batched_tokens=64)
    specs = [submit(engine, guesser, f"r{n}", [n, 3], max_tokens=24, min_tokens=n) for n in range(1, 16, 3)]
    engine.run()
    for spec in specs:
        engine.check_output(spec)


def test_rejected_drafts_are_no_prefix(engine_of):
    """What was computed for wrong drafts is in no block that another request finds."""
    guesser = Guesser(0.5)
    engine = engine_of(60, speculation=eager(guesser, 9), max_num_batched_tokens=64)
    first = submit(engine, guesser, "a", range(8), max_tokens=40, ignore_eos=True)
    engine.run()
    tokens = [*first.prompt_token_ids, *engine.outputs["a"]]
    for length in (12, 23, 40):
        spec = submit(engine, guesser, f"again{length}", tokens[:length], max_tokens=10, ignore_eos=True)
        engine.run()
        engine.check_output(spec)
        assert engine.finished[f"again{length}"].num_cached_tokens == (length - 1) // 4 * 4


def test_drafts_take_no_block_from_anybody(engine_of):
    """The pool is as full as it can be: drafts stay within the blocks that their request holds."""
    guesser = Guesser(1.0)
    engine = engine_of(12, speculation=eager(guesser, 15), max_num_batched_tokens=64, max_num_seqs=2)
    specs = [submit(engine, guesser, name, [i, 1], max_tokens=22, ignore_eos=True) for i, name in enumerate("ab")]
    engine.run()
    assert engine.scheduler.stats().num_preemptions == 0
    for spec in specs:
        engine.check_output(spec)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_everything_at_once(engine_of, data):
    """Small pools preempt, clients leave, adapters come and go, plans run ahead, drafts are right or not."""
    guesser = Guesser(data.draw(st.sampled_from([0.3, 0.8, 1.0])), seed=1)
    engine = engine_of(
        data.draw(st.integers(16, 30)),
        steps_ahead=data.draw(st.integers(0, 1)),
        speculation=eager(guesser, data.draw(st.integers(1, 12))),
        max_num_batched_tokens=data.draw(st.sampled_from([9, 24, 64])),
        enable_prefix_caching=data.draw(st.booleans()),
    )
    specs = {}
    for number in range(data.draw(st.integers(2, 9))):
        request_id = f"r{number}"
        prompt = [*range(data.draw(st.integers(0, 12))), data.draw(st.integers(0, 22))]
        specs[request_id] = submit(
            engine,
            guesser,
            request_id,
            prompt,
            max_tokens=data.draw(st.integers(1, 30)),
            ignore_eos=data.draw(st.booleans()),
        )
        for _ in range(data.draw(st.integers(0, 5))):
            engine.step()
        if data.draw(st.integers(0, 5)) == 0:
            left = data.draw(st.sampled_from(sorted(specs)))
            engine.scheduler.abort(left)
            engine.scheduler.check_integrity()
            if left not in engine.finished:
                del specs[left]
    engine.run()
    for spec in specs.values():
        engine.check_output(spec)
    engine.check_is_idle()
