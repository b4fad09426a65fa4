"""Vectors, and scores made of them: here a decoder's last states, cut to the sizes that its config allows."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from openai import BadRequestError, NotFoundError

from .asking import assert_refused, call
from .model_folder import token_id
from .option import Api, OptionTable, Status
from .stack import MODEL, Stack

EMBEDDINGS, RERANK, SCORE = OptionTable(Api.EMBEDDINGS), OptionTable(Api.RERANK), OptionTable(Api.SCORE)
SIZE = 64


def embed(stack: Stack, **options: Any) -> Any:
    return call(stack.openai.embeddings.create, {"model": MODEL, "input": "Hello", **options})


def vector(stack: Stack, **options: Any) -> list[float]:
    found: list[float] = embed(stack, **options).data[0].embedding
    return found


@EMBEDDINGS.works("model", "One that makes vectors: an encoder, or a decoder with a way of pooling.")
def embedding_model(stack: Stack) -> None:
    assert embed(stack).model == MODEL
    with pytest.raises(NotFoundError):
        embed(stack, model="nobody")


@EMBEDDINGS.works("input", "A text, token ids, or any number of either (OpenAI: 2,048); vectors come in their order.")
def embedding_input(stack: Stack) -> None:
    ids = [token_id(letter) for letter in "Hello"]
    forms = (vector(stack, input=form) for form in ("Hello", ["Hello"], ids, [ids]))
    first, *others = forms
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    for other in others:
        assert other == pytest.approx(first, abs=1e-5)
    many = embed(stack, input=["Bye", "Hello"])
    assert [each.index for each in many.data] == [0, 1]
    assert many.data[1].embedding == pytest.approx(first, abs=1e-5)
    assert many.usage.prompt_tokens == many.usage.total_tokens == 8
    assert_refused(embed_with(stack), "input", [])


def embed_with(stack: Stack) -> Any:
    return lambda **options: embed(stack, **options)


@EMBEDDINGS.works("encoding_format", "float or base64, of little-endian float32.")
def encoding_format(stack: Stack) -> None:
    floats = vector(stack, encoding_format="float")
    encoded = embed(stack, encoding_format="base64").data[0].embedding
    assert np.frombuffer(base64.b64decode(encoded), dtype="<f4").tolist() == pytest.approx(floats, abs=1e-6)
    assert_refused(embed_with(stack), "encoding_format", "hex")


@EMBEDDINGS.works("dimensions", "Those that the model was trained for (Matryoshka); others are refused.")
def dimensions(stack: Stack) -> None:
    whole, short = vector(stack), vector(stack, dimensions=16)
    assert len(whole) == SIZE
    assert vector(stack, dimensions=SIZE) == whole
    assert short == pytest.approx(np.array(whole[:16]) / np.linalg.norm(whole[:16]), abs=1e-5)
    assert_refused(embed_with(stack), "dimensions", 12)


@EMBEDDINGS.differs("user", "Keeps a user's requests on one backend; nothing else.")
def embedding_user(stack: Stack) -> None:
    assert vector(stack, user="somebody") == pytest.approx(vector(stack), abs=1e-6)


@EMBEDDINGS.works(
    "truncate_prompt_tokens", "The first so many tokens of each text; -1 takes as many as the model does."
)
def truncate_prompt_tokens(stack: Stack) -> None:
    assert vector(stack, truncate_prompt_tokens=2) == pytest.approx(vector(stack, input="He"), abs=1e-5)
    assert_refused(embed_with(stack), "truncate_prompt_tokens", 0)


@EMBEDDINGS.works(
    "add_special_tokens", "Whether a text gets the tokens that the model wants around it; true unless said otherwise."
)
def add_special_tokens(stack: Stack) -> None:
    counts = [embed(stack, add_special_tokens=given).usage.prompt_tokens for given in (True, False)]
    assert counts == [5, 5], "the suite's model wants none"


def score(stack: Stack, path: str, **body: Any) -> dict[str, Any]:
    answer = stack.openai.post(path, body={"model": MODEL, **body}, cast_to=object)
    assert isinstance(answer, dict)
    return answer


def rerank(stack: Stack, **options: Any) -> dict[str, Any]:
    return score(stack, "/rerank", **{"query": "Hello", "documents": ["Bye", "Hello", "Help"], **options})


def pair(stack: Stack, **options: Any) -> dict[str, Any]:
    return score(stack, "/score", **{"text_1": "Hello", "text_2": ["Hello", "Bye"], **options})


@RERANK.works("model", "A cross-encoder, or any model of vectors, by their cosine.")
def rerank_model(stack: Stack) -> None:
    assert rerank(stack)["model"] == MODEL
    with pytest.raises(NotFoundError):
        rerank(stack, model="nobody")


@RERANK.works("query")
def query(stack: Stack) -> None:
    assert rerank(stack)["results"][0]["index"] == 1
    assert rerank(stack, query="Bye")["results"][0]["index"] == 0


@RERANK.works("documents", "Texts, or objects with a `text`; the best comes first.")
def documents(stack: Stack) -> None:
    results = rerank(stack, documents=["Bye", {"text": "Hello"}])["results"]
    assert [result["index"] for result in results] == [1, 0]
    assert results[0]["relevance_score"] == pytest.approx(1, abs=1e-4)
    assert results[0]["document"] == {"text": "Hello"}
    assert_refused(lambda **options: rerank(stack, **options), "documents", [])


@RERANK.works("top_n", "Null or 0 is all.")
def top_n(stack: Stack) -> None:
    assert [len(rerank(stack, top_n=count)["results"]) for count in (2, 0)] == [2, 3]
    assert_refused(lambda **options: rerank(stack, **options), "top_n", -1)


@RERANK.works("return_documents", "Jina's and Cohere's; true unless said otherwise.")
def return_documents(stack: Stack) -> None:
    assert all("document" not in result for result in rerank(stack, return_documents=False)["results"])


@SCORE.works("model", "A cross-encoder, or any model of vectors, by their cosine.")
def score_model(stack: Stack) -> None:
    assert pair(stack)["model"] == MODEL


@SCORE.works("text_1", "One text with each of `text_2`, or as many as those.")
def text_1(stack: Stack) -> None:
    each = pair(stack, text_1=["Hello", "Bye"], text_2=["Hello", "Bye"])
    assert [one["score"] for one in each["data"]] == pytest.approx([1, 1], abs=1e-4)
    assert each["usage"]["total_tokens"] == each["usage"]["prompt_tokens"]


@SCORE.works("text_2")
def text_2(stack: Stack) -> None:
    same, other = (one["score"] for one in pair(stack)["data"])
    assert same > other
    assert_refused(lambda **options: pair(stack, **options), "text_2", [])


def _for_scores(name: str, value: object, status: Status, note: str) -> None:
    """Options that rerank and score have in common."""
    for table, ask in ((RERANK, rerank), (SCORE, pair)):
        check = _refused(ask, name, value) if status is Status.REFUSED else _harmless(ask, name, value)
        table.add(name, status, note, check)


def _refused(ask: Any, name: str, value: object) -> Any:
    return lambda stack: assert_refused(lambda **options: ask(stack, **options), name, value)


def _harmless(ask: Any, name: str, value: object) -> Any:
    def check(stack: Stack) -> None:
        def scores(answer: dict[str, Any]) -> list[float]:
            rows = answer.get("results") or answer["data"]
            return [row.get("relevance_score", row.get("score")) for row in rows]

        assert scores(ask(stack, **{name: value})) == pytest.approx(scores(ask(stack)), abs=1e-5)

    return check


def truncated_scores(ask: Any) -> Any:
    def check(stack: Stack) -> None:
        assert ask(stack, truncate_prompt_tokens=2)["usage"]["prompt_tokens"] < ask(stack)["usage"]["prompt_tokens"]
        assert_refused(lambda **options: ask(stack, **options), "truncate_prompt_tokens", 0)

    return check


def priority(path: str, body: dict[str, object]) -> Any:
    """The gateway lets nobody pass by others; the engine alone takes it."""

    def check(stack: Stack) -> None:
        with pytest.raises(BadRequestError, match="priority"):
            stack.openai.post(path, body={"model": MODEL, "priority": 1, **body}, cast_to=object)
        engine = httpx.post(f"{stack.engine_url}/v1{path}", json={"model": MODEL, "priority": 1, **body})
        assert engine.status_code == 200, engine.text

    return check


PRIORITY = "The engine takes it, lower first. The gateway takes only 0."
EMBEDDINGS.add("priority", Status.DIFFERS, PRIORITY, priority("/embeddings", {"input": "x"}))
RERANK.add("priority", Status.DIFFERS, PRIORITY, priority("/rerank", {"query": "x", "documents": ["x"]}))
SCORE.add("priority", Status.DIFFERS, PRIORITY, priority("/score", {"text_1": "x", "text_2": "y"}))
RERANK.add("truncate_prompt_tokens", Status.WORKS, "The first so many tokens of each text.", truncated_scores(rerank))
SCORE.add("truncate_prompt_tokens", Status.WORKS, "The first so many tokens of each text.", truncated_scores(pair))
_for_scores("user", "somebody", Status.DIFFERS, "Keeps requests on one backend; nothing else.")

REFUSED = {
    "messages": [{"role": "user", "content": "x"}],
    "normalize": False,
    "use_activation": False,
    "embed_dtype": "float16",
    "endianness": "big",
    "truncation_side": "left",
    "add_generation_prompt": True,
    "continue_final_message": True,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"a": 1},
    "media_io_kwargs": {"image": {}},
    "mm_processor_kwargs": {"a": 1},
    "request_id": "mine",
    "cache_salt": "mine",
    "pooling_task": "embed",
}
NOTES = {
    "messages": "Texts only.",
    "normalize": "Vectors are of length 1.",
    "cache_salt": "Teams share no prefixes in any case.",
}
for _name, _value in REFUSED.items():
    EMBEDDINGS.add(_name, Status.REFUSED, NOTES.get(_name, ""), _refused(embed, _name, _value))
for _name in (
    "max_tokens_per_doc",
    "use_activation",
    "mm_processor_kwargs",
    "truncation_side",
    "request_id",
    "chat_template",
):
    _for_scores(_name, REFUSED.get(_name, 5), Status.REFUSED, "")
