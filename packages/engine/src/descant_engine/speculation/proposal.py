"""What proposers have in common."""

from typing import NamedTuple, Protocol

from descant_engine.request import Request


class Proposal(NamedTuple):
    """Tokens that may follow a request's known ones."""

    num_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    """Empty if the draft model is still to make them."""

    def first(self, num_tokens: int) -> "Proposal":
        return Proposal(min(num_tokens, self.num_tokens), self.token_ids[:num_tokens])


NO_PROPOSAL = Proposal()


class Proposer(Protocol):
    makes_work: bool
    """Whether drafts take steps of a model, which come before the step that checks them."""

    def propose(self, request: Request, max_tokens: int) -> Proposal:
        """What may follow the request's known tokens. Cheap, and asked after every step."""

    def forget(self, request_id: str) -> None:
        """The request is over. Unknown ids are ignored."""


class ModelProposer:
    """Says only how many tokens; the runner's draft model makes them, where they are needed."""

    makes_work = True

    def propose(self, request: Request, max_tokens: int) -> Proposal:
        return Proposal(max_tokens)

    def forget(self, request_id: str) -> None:
        """It remembers nothing."""
