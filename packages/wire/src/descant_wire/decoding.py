"""Request bodies, strictly: bytes in, a struct or a 400 that names the field out. No input makes it a 500."""

import re
from typing import TypeVar

import msgspec

from descant_wire.chat import ChatCompletionRequest, ChatMessage
from descant_wire.completions import CompletionRequest
from descant_wire.errors import ApiError, invalid_request, unsupported_field
from descant_wire.possible_values import possible_values
from descant_wire.sampling import StreamOptions
from descant_wire.tokenize import TokenizeRequest

RequestT = TypeVar("RequestT")
_Restricted = ChatCompletionRequest | CompletionRequest | ChatMessage | StreamOptions

_AT_PATH = re.compile(r"^(?P<problem>.*) - at `\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING_FIELD = re.compile(r"^Object missing required field `(?P<field>.*)`$", re.DOTALL)
_NONE_OF_THEM = re.compile(r"^Invalid (enum )?value ")


def decode_request(body: bytes, request_type: type[RequestT]) -> RequestT:
    """The request in `body`.

    Raises:
        ApiError: 400. `param` is the field at fault as a path (`messages[0].content`), where there is one.
    """
    try:
        request = msgspec.json.decode(body, type=request_type)
    except msgspec.ValidationError as error:
        raise _explain_mismatch(str(error), request_type) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid_request(f"The request body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise invalid_request("The request body is nested too deeply.", code="invalid_json") from None
    _refuse_unsupported(request)
    return request


def _explain_mismatch(message: str, request_type: type) -> ApiError:
    located = _AT_PATH.match(message)
    problem, path = (located["problem"], located["path"]) if located else (message, "")
    if unknown := _UNKNOWN_FIELD.match(problem):
        param = _join(path, unknown["field"])
        return unsupported_field(f"`{param}` is not a field of this request.", param=param)
    if missing := _MISSING_FIELD.match(problem):
        param = _join(path, missing["field"])
        return invalid_request(f"`{param}` is required.", param=param, code="missing_required_parameter")
    if not path:
        return invalid_request(f"The request body has the wrong type: {problem}.", code="invalid_type")
    if _NONE_OF_THEM.match(problem) and (values := possible_values(request_type, path)):
        problem += f"; possible: {', '.join(values)}"
    return invalid_request(f"`{path}`: {problem}.", param=path, code="invalid_value")


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


def _refuse_unsupported(request: object) -> None:
    if isinstance(request, (ChatCompletionRequest, CompletionRequest)):
        _refuse_fields(request, "")
        if request.stream_options is not None:
            _refuse_fields(request.stream_options, "stream_options")
    if isinstance(request, (ChatCompletionRequest, TokenizeRequest)):
        for index, message in enumerate(request.messages or ()):
            _refuse_fields(message, f"messages[{index}]")


def _refuse_fields(struct: _Restricted, path: str) -> None:
    for field, accepted in struct.only.items():
        value = getattr(struct, field)
        if value is None or value in accepted:
            continue
        param = _join(path, field)
        allowed = " or ".join(["null", *(msgspec.json.encode(each).decode() for each in accepted)])
        raise unsupported_field(f"`{param}` is not supported yet: only {allowed} is accepted.", param=param)
