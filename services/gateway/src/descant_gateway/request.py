"""The few fields that the gateway decides on, decoded from a body that otherwise stays bytes."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct, field

from descant_gateway.endpoints import ENDPOINTS, Endpoint
from descant_wire.errors import invalid_request, unsupported_field

BYTES_PER_TOKEN: Final = 4
"""English text in today's vocabularies. For reservations only: the settlement takes the true count."""

TokenCount = Annotated[int, Meta(ge=0, le=2**31 - 1)]
ChoiceCount = Annotated[int, Meta(ge=1, le=10_000)]


class StreamOptions(Struct, frozen=True):
    include_usage: bool | None = None


class _Decided(Struct, frozen=True):
    model: str
    stream: bool | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    max_output_tokens: TokenCount | None = None
    n: ChoiceCount | None = None
    best_of: ChoiceCount | None = None
    stream_options: StreamOptions | None = None
    prompt: Raw = field(default_factory=Raw)


class InferenceRequest(Struct, frozen=True):
    """One request of a client, as far as the gateway understands it."""

    endpoint: str
    """The path: one of `endpoints.ENDPOINTS`."""
    members: dict[str, Raw]
    """The top level of the body. The values are the client's bytes."""
    model: str
    stream: bool
    max_tokens: int | None
    include_usage: bool
    """The client wants the usage chunk at the end of its stream."""
    estimated_prompt_tokens: int
    max_choices: int = 1
    """Answers that one request may have: each may be as long as `max_tokens`."""

    @property
    def kind(self) -> Endpoint:
        return ENDPOINTS[self.endpoint]


_members_decoder = msgspec.json.Decoder(dict[str, Raw])
_list_decoder = msgspec.json.Decoder(list[Raw])
_decided_decoder = msgspec.json.Decoder(_Decided)


def read_request(endpoint: str, body: bytes) -> InferenceRequest:
    """400 in OpenAI's shape, naming the field, for anything that is not a request; unknown fields are the backend's."""
    members, decided = _decode(body)
    _refuse_priority(members)
    kind = ENDPOINTS[endpoint]
    return InferenceRequest(
        endpoint=endpoint,
        members=members,
        model=decided.model,
        stream=bool(decided.stream),
        max_tokens=_output_limit(decided) if kind.generates else 0,
        include_usage=decided.stream_options is not None and bool(decided.stream_options.include_usage),
        estimated_prompt_tokens=sum(_estimate_tokens(members[name]) for name in kind.prompt_fields if name in members),
        max_choices=_num_prompts(decided.prompt) * max(decided.n or 1, decided.best_of or 1),
    )


def _output_limit(decided: _Decided) -> int | None:
    """By the current names first; None leaves it to the model."""
    for limit in (decided.max_completion_tokens, decided.max_output_tokens, decided.max_tokens):
        if limit is not None:
            return limit
    return None


def _refuse_priority(members: dict[str, Raw]) -> None:
    """An engine serves the smaller number first, whosever it is: a key could pass by everybody else's requests."""
    if bytes(members.get("priority", b"0")) not in (b"0", b"null"):
        raise unsupported_field("`priority` is not taken from clients of the gateway.", param="priority")


def _decode(body: bytes) -> tuple[dict[str, Raw], _Decided]:
    try:
        return _members_decoder.decode(body), _decided_decoder.decode(body)
    except msgspec.ValidationError as error:
        message, param = _locate(str(error))
        raise invalid_request(message, param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_request(f"The request's body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise invalid_request("The request's JSON is nested too deeply.", code="invalid_json") from None


def _locate(message: str) -> tuple[str, str | None]:
    """msgspec says "Expected `int`, got `str` - at `$.max_tokens`": what is wrong and where."""
    problem, _, path = message.partition(" - at `$.")
    if path:
        param = path.rstrip("`")
        return f"{problem} in the field '{param}'.", param
    if "missing required field" in message:
        param = message.rpartition("field `")[2].rstrip("`")
        return f"The field '{param}' is required.", param
    return f"{message}.", None


def _estimate_tokens(text: Raw) -> int:
    """A prompt of token ids has one a comma; everything else is text, JSON's own signs standing for the template's."""
    view = memoryview(text)
    if _starts_token_ids(bytes(view[:2])):
        return bytes(text).count(b",") + 1
    return -(-view.nbytes // BYTES_PER_TOKEN)


def _num_prompts(prompt: Raw) -> int:
    """A list of texts, or of lists of token ids, is as many prompts."""
    start = bytes(memoryview(prompt)[:2])
    if start[:1] != b"[" or _starts_token_ids(start):
        return 1
    parts = _list_decoder.decode(prompt)
    if not parts or bytes(parts[0])[:1].isdigit():
        return 1
    return len(parts)


def _starts_token_ids(start: bytes) -> bool:
    return start[:1] == b"[" and start[1:].isdigit()
