"""The forms that OpenAI's API has for texts and lists of them."""

from collections.abc import Sequence

from descant_wire.errors import invalid_request

Input = str | list[int]
"""Text, or token ids."""


def inputs_of(given: str | Sequence[str | int | list[int]], field: str) -> list[Input]:
    """A string, a list of strings, a list of token ids or a list of token-id lists, as a list.

    Raises:
        ApiError: 400, for an empty list or a list of several kinds of thing; `field` is its name.
    """
    if isinstance(given, str):
        return [given]
    token_ids = [item for item in given if isinstance(item, int)]
    if token_ids and len(token_ids) == len(given):
        return [token_ids]
    inputs = [item for item in given if not isinstance(item, int)]
    if not inputs or token_ids or len({type(each) for each in inputs}) > 1:
        raise invalid_request(
            f"`{field}` must be a string, a list of strings, a list of token ids or a list of token-id lists; not"
            " empty, and not a mixture.",
            param=field,
        )
    return inputs
