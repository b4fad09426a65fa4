"""A refusal of the chat completion that a request was said as, in the words of the endpoint that its client asked."""

import re
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from descant_wire.errors import ErrorBody, ErrorDetail


def in_own_words(detail: ErrorDetail, names: Mapping[str, str]) -> ErrorDetail:
    """`names`: what chat completions call a field -> what the endpoint calls it. Others have one name in both."""
    field = re.split(r"[.\[]", detail.param or "", maxsplit=1)[0]
    own = names.get(field)
    if own is None:
        return detail
    # As a name, which is how messages begin or quote it; not as a word of a sentence.
    message = re.sub(rf"^{field}(?=[\s:.\[])|(?<=[`']){field}[^`']*(?=[`'])", own, detail.message)
    return replace(detail, message=message, param=own)


def body_in_own_words(body: bytes, names: Mapping[str, str]) -> bytes:
    """The same for an answer's body; what is no error in OpenAI's shape stays as it is."""
    try:
        detail = msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.MsgspecError:
        return body
    told = in_own_words(detail, names)
    return body if told is detail else msgspec.json.encode(ErrorBody(error=told))
