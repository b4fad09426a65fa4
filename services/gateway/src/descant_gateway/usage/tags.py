"""What a client says its request is for: a few names and values that go into the ledger, to report by.

From the header `x-descant-tags: project=apollo,feature=search`, and from OpenAI's `metadata` in the body. For a name
that is in both, the header's value counts.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from descant_gateway.storable import is_storable
from descant_wire.errors import invalid_request

HEADER: Final = "x-descant-tags"
MAX_TAGS: Final = 16
MAX_NAME_LENGTH: Final = 64
MAX_VALUE_LENGTH: Final = 128

Tags = Mapping[str, str]
_HEADER: Final = HEADER.encode()
_metadata_decoder = msgspec.json.Decoder(dict[str, Raw])
_text_decoder = msgspec.json.Decoder(str)


def read_tags(headers: Mapping[bytes, bytes], members: Mapping[str, Raw]) -> Tags | None:
    """400 for a header that is malformed or too long. `metadata` is the backend's: of it, what fits becomes tags."""
    given, metadata = headers.get(_HEADER), members.get("metadata")
    if given is None and metadata is None:
        return None
    tags = {} if given is None else _of_header(given)
    if metadata is not None:
        for name, value in _of_metadata(metadata):
            if len(tags) == MAX_TAGS:
                break
            tags.setdefault(name, value)
    return tags or None


def _of_header(given: bytes) -> dict[str, str]:
    tags = {}
    for pair in filter(None, (part.strip() for part in _as_text(given).split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not _fits(name, value):
            raise _malformed(
                f"{pair[:100]!r} is not name=value with a name of 1 to {MAX_NAME_LENGTH} and a value of at most "
                f"{MAX_VALUE_LENGTH} characters"
            )
        tags[name] = value
    if len(tags) > MAX_TAGS:
        raise _malformed(f"it has {len(tags)} tags, and {MAX_TAGS} are allowed")
    return tags


def _as_text(given: bytes) -> str:
    try:
        return given.decode()
    except UnicodeDecodeError:
        raise _malformed("it is not UTF-8") from None


def _of_metadata(metadata: Raw) -> list[tuple[str, str]]:
    """Its pairs of texts. What else it holds is for the backend to judge."""
    try:
        members = _metadata_decoder.decode(metadata)
    except (msgspec.MsgspecError, RecursionError):
        return []
    pairs = []
    for name, value in members.items():
        if bytes(memoryview(value)[:1]) == b'"':
            text = _text_decoder.decode(value)
            if _fits(name, text):
                pairs.append((name, text))
    return pairs


def _fits(name: str, value: str) -> bool:
    return 0 < len(name) <= MAX_NAME_LENGTH and len(value) <= MAX_VALUE_LENGTH and is_storable(name + value)


def _malformed(what: str) -> Exception:
    return invalid_request(
        f"The header {HEADER} can't be read: {what}. Write it like project=apollo,feature=search.", param=HEADER
    )
