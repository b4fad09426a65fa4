"""The shares of all requests, and what tokens cost them; see `descant_engine.share`."""

from descant_engine.request import Request
from descant_engine.share import Share

INPUT_TOKEN_COST = 1
OUTPUT_TOKEN_COST = 2
"""The paper's weights, which are also about the ratio of the market's prices."""


class Shares:
    """The shares of every unfinished request, and of some that were here before."""

    def __init__(self) -> None:
        self._root = Share()

    def join(self, request: Request, step: int) -> Share:
        """The request's share, for as long as it is unfinished. `step`: the number of the last step."""
        share = self._root.child(request.spec.tenant).child(request.spec.adapter_digest)
        share.join()
        share.arrive(step)
        return share

    def leave(self, share: Share) -> None:
        share.leave()


def charge(request: Request, num_tokens: int) -> None:
    """Charges the request's share for its next `num_tokens`, in so far as nobody has paid for them: what a preempted
    request computes again, or found in the prefix cache, is free."""
    num_charged = request.num_charged_tokens
    if num_new := request.charge(num_tokens):
        num_inputs = min(max(len(request.spec.prompt_token_ids) - num_charged, 0), num_new)
        request.share.charge(INPUT_TOKEN_COST * num_inputs + OUTPUT_TOKEN_COST * (num_new - num_inputs))
