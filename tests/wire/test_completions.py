import pytest

from descant_wire.completions import MAX_PROMPTS, CompletionRequest
from descant_wire.errors import ApiError


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_four_forms_of_prompt(prompt: object, prompts: object) -> None:
    assert CompletionRequest(model="m", prompt=prompt).prompts() == prompts  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [[], ["a", 1], ["a", [1]], [[1], 1], ["x"] * (MAX_PROMPTS + 1)])
def test_other_forms_are_refused(prompt: object) -> None:
    with pytest.raises(ApiError) as caught:
        CompletionRequest(model="m", prompt=prompt).prompts()  # type: ignore[arg-type]
    assert caught.value.detail.param == "prompt"


def test_sixteen_tokens_unless_said_otherwise() -> None:
    assert CompletionRequest(model="m", prompt="a").completion_limit == 16
    assert CompletionRequest(model="m", prompt="a", max_tokens=3).completion_limit == 3
