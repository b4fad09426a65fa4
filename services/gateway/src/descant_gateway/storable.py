"""What the database can hold of what clients and administrators say: text without NUL, whole numbers of 64 bits.

It is asked where the name of the field is known. PostgreSQL itself would refuse the whole statement and name nothing.
"""

from typing import Annotated, Final

from msgspec import Meta

from descant_wire.errors import invalid_request

StorableText = Annotated[str, Meta(pattern=r"^[^\x00]*$", description="any characters but NUL")]
_INTEGERS: Final = range(-(2**63), 2**63)
MAX_QUOTED: Final = 100
"""Characters of a text that a refusal repeats."""


def is_storable(value: object) -> bool:
    """What is neither text nor a whole number is not judged."""
    if isinstance(value, int):
        return value in _INTEGERS
    return not isinstance(value, str) or "\0" not in value


def require_storable(text: str, field: str) -> None:
    """Raises ApiError: 400, by the field's name."""
    if not is_storable(text):
        message = f"`{field}`: {text[:MAX_QUOTED]!r} has a NUL character, which can't be stored. Leave it out."
        raise invalid_request(message, param=field, code="invalid_value")
