"""Which of a model's variants serves a request: a share of the keys, or of the sessions, always the same ones."""

from hashlib import blake2b
from typing import Final

from descant_gateway.admitted_call import AdmittedCall
from descant_gateway.catalogue.routing_policy import Variant
from descant_gateway.catalogue.snapshot import Catalogue, ModelRoute
from descant_gateway.routing.affinity import SESSION_HEADER
from descant_wire.errors import invalid_request

CANARY_HEADER: Final = b"x-descant-canary"
"""`always` or `never` overrules the share, for tests of the canary itself."""
_HUNDRED_PERCENT: Final = 10_000


def variant_of(admitted: AdmittedCall, catalogue: Catalogue) -> tuple[ModelRoute, bool]:
    """The model that serves, and whether it is the canary. Raises ApiError 400 for a header that is neither word."""
    canary = admitted.model.policy.canary
    given = admitted.call.headers.get(CANARY_HEADER)
    if given not in (None, b"always", b"never"):
        raise invalid_request("The header x-descant-canary must be 'always' or 'never'.")
    if canary is None or given == b"never":
        return admitted.model, False
    model = catalogue.models.get(canary.model)
    if model is None or not (given == b"always" or is_chosen(canary, _who(admitted))):
        return admitted.model, False
    return model, True


def is_chosen(variant: Variant, who: bytes) -> bool:
    """The same answer for the same `who` as long as the percentage stays; a higher one only adds."""
    digest = blake2b(who, digest_size=4, key=variant.model.encode()[:64]).digest()
    return int.from_bytes(digest, "big") % _HUNDRED_PERCENT < variant.percent * 100


def _who(admitted: AdmittedCall) -> bytes:
    key = admitted.caller.key.id.bytes
    return key + admitted.call.headers.get(SESSION_HEADER, b"")
