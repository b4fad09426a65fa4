"""What clients see, through the official client and a real server."""

from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from descant_wire.internal import identity_headers

INTERNAL_KEY = "internal-key-of-the-tests"
MAX_MODEL_LEN = 4096
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


def chat(client: openai.OpenAI, model: str = "tiny", **fields):
    extra = {"ignore_eos": True} | fields.pop("extra_body", {})
    fields = {"messages": HELLO, "max_tokens": 12, "temperature": 0} | fields
    return client.chat.completions.create(model=model, extra_body=extra, **fields)


def test_chat(client):
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.system_fingerprint is None
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert choice.message.content
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_chat_stream_says_what_the_whole_answer_says(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == 12
    # The prompt is longer than a block, and was just computed.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_no_usage_chunk_unless_asked_for(client):
    chunks = list(chat(client, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_the_stream_ends_with_done(http):
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "stream": True}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.text.endswith("data: [DONE]\n\n")


def test_adapters_answer_in_their_own_ways(client):
    answers = {
        model: chat(client, model, max_tokens=24).choices[0].message.content for model in ("tiny", "pirate", "lawyer")
    }
    assert len(set(answers.values())) == 3
    assert chat(client, "pirate").model == "pirate"


def test_stop_strings_and_their_reason(client):
    text = chat(client, max_tokens=24).choices[0].message.content
    stop = next(symbol for symbol in text[3:] if symbol.isascii())
    (choice,) = chat(client, max_tokens=24, stop=[stop]).choices
    assert choice.finish_reason == "stop"
    assert choice.message.content == text[: text.index(stop)]
    assert choice.stop_reason == stop


def test_a_seed_makes_an_answer_repeatable(client):
    first, second, other = (
        chat(client, temperature=1.5, seed=seed, max_tokens=24).choices[0].message.content for seed in (7, 7, 8)
    )
    assert first == second != other


def test_completions_of_text_and_of_token_ids(client, http):
    tokens = http.post("/tokenize", json={"prompt": "once"}).json()["tokens"]
    texts = {
        client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, temperature=0, extra_body={"ignore_eos": True}
        )
        .choices[0]
        .text
        for prompt in ("once", ["once"], tokens, [tokens])
    }
    assert len(texts) == 1


def test_several_prompts_give_several_choices(client):
    ask = {
        "model": "tiny",
        "prompt": ["once", "twice", "thrice"],
        "max_tokens": 8,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**ask)
    assert whole.id.startswith("cmpl-")
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage.completion_tokens == 24
    texts, reasons = ["", "", ""], {}
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == dict.fromkeys(range(3), "length")
    assert chunk.usage.completion_tokens == 24


def test_models(client):
    cards = {card.id: card for card in client.models.list()}
    assert list(cards) == ["tiny", "pirate", "lawyer"]
    assert cards["tiny"].max_model_len == MAX_MODEL_LEN
    assert cards["tiny"].parent is None
    assert cards["pirate"].parent == "tiny"
    assert client.models.retrieve("lawyer").id == "lawyer"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/model")


def test_load_and_unload_an_adapter(http, client, save_adapter: Callable[[int], Path]):
    body = {"lora_name": "poet", "lora_path": str(save_adapter(3))}
    response = http.post("/v1/load_lora_adapter", json=body)
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'poet' added successfully.")
    before = chat(client, "poet", max_tokens=24).choices[0].message.content
    taken = http.post("/v1/load_lora_adapter", json=body)
    assert taken.status_code == 400
    assert "load_inplace" in taken.json()["error"]["message"]
    other = body | {"lora_path": str(save_adapter(4)), "load_inplace": True}
    assert http.post("/v1/load_lora_adapter", json=other).status_code == 200
    assert chat(client, "poet", max_tokens=24).choices[0].message.content != before
    response = http.post("/v1/unload_lora_adapter", json={"lora_name": "poet"})
    assert (response.status_code, response.text) == (200, "Success: LoRA adapter 'poet' removed successfully.")
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, "poet")
    assert caught.value.code == "model_not_found"
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "poet"}).status_code == 404


def test_a_bad_adapter_is_refused_with_its_reason(http, tmp_path: Path):
    absent = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/no/such/folder"})
    assert (absent.status_code, absent.json()["error"]["param"]) == (404, "lora_path")
    empty = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(tmp_path)})
    assert empty.status_code == 400
    assert "adapter_config.json" in empty.json()["error"]["message"]


def test_tokenize_and_back(http):
    answer = http.post("/tokenize", json={"prompt": "héllo", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 6
    assert answer["max_model_len"] == MAX_MODEL_LEN
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "héllo"}
    chat_answer = http.post("/tokenize", json={"messages": HELLO}).json()
    text = http.post("/detokenize", json={"tokens": chat_answer["tokens"]}).json()["prompt"]
    assert text == "<user>hello\n<assistant>"


@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]},
        {"chat_template_kwargs": {"shout": True}},
    ],
)
def test_tokenize_counts_what_a_chat_is_charged(http, options):
    ask = {"model": "tiny", "messages": [*HELLO, {"role": "assistant", "content": "well"}], **options}
    counted = http.post("/tokenize", json=ask).json()
    charged = http.post("/v1/chat/completions", json=ask | {"max_tokens": 1}).json()
    if "chat_template_kwargs" in options:
        assert counted["error"] == charged["error"]
        assert "shout" in counted["error"]["message"]
    else:
        assert counted["count"] == charged["usage"]["prompt_tokens"]
        assert counted["count"] != http.post("/tokenize", json={"messages": ask["messages"]}).json()["count"]


def test_too_long_a_prompt_names_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "x" * (MAX_MODEL_LEN + 1)}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    numbers = [int(word) for word in caught.value.message.replace(",", " ").split() if word.isdigit()]
    assert str(MAX_MODEL_LEN) in caught.value.message
    assert any(number > MAX_MODEL_LEN for number in numbers)


def test_metrics_count_what_was_done(server, client):
    names = (
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_success_total",
    )
    before = {name: server.metric(name) for name in names}
    tokens_before = server.metric("descant:adapter_tokens_total", adapter="pirate", kind="generation")
    usage = chat(client, "pirate").usage
    assert {name: server.metric(name) - before[name] for name in names} == {
        "vllm:prompt_tokens_total": usage.prompt_tokens,
        "vllm:generation_tokens_total": 12,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:request_success_total": 1,
    }
    tokens = server.metric("descant:adapter_tokens_total", adapter="pirate", kind="generation")
    assert tokens - tokens_before == 12
    text = httpx.get(f"{server.url}/metrics").text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:num_preemptions_total",
        "vllm:lora_requests_info",
        "vllm:inter_token_latency_seconds_bucket",
        "descant:adapters",
    ):
        assert f"\n{name}{{" in text, name


def test_probes_and_version(http):
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json()["version"]


def test_errors_of_the_framework_have_openais_shape(http):
    for response, status, code in (
        (http.get("/nowhere"), 404, "unknown_url"),
        (http.get("/v1/chat/completions"), 405, "method_not_allowed"),
        (http.post("/v1/chat/completions", content=b"x" * 17_000_000), 413, "payload_too_large"),
        (http.post("/v1/chat/completions", data={"model": "tiny"}), 415, "unsupported_media_type"),
    ):
        assert response.status_code == status
        assert response.json()["error"]["code"] == code
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_prefix_blocks_are_shared_within_a_tenant_only(start_server):
    server = start_server("--internal-key", INTERNAL_KEY).wait_until_ready()
    http = httpx.Client(base_url=server.url, timeout=60)
    body = {"model": "tiny", "prompt": "a prompt of two tenants, longer than a block of tokens " * 4, "max_tokens": 1}

    def num_cached(tenant: str, cache_salt: str | None = None) -> int:
        headers = identity_headers(INTERNAL_KEY.encode(), tenant, 0, "") if tenant else {}
        reply = http.post("/v1/completions", json=body | {"cache_salt": cache_salt}, headers=headers)
        return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert num_cached("one") == 0
    assert num_cached("one") > 0
    assert num_cached("two") == 0
    assert num_cached("two", "one") == 0
    assert num_cached("two", "one") > 0
    assert num_cached("") == 0
    assert num_cached("", "one\0") == 0  # a salt of one's own is nobody's tenant

    def refusal(body_fields: dict, headers: dict) -> tuple[int, str]:
        reply = http.post("/v1/completions", json=body | body_fields, headers=headers)
        return reply.status_code, reply.json()["error"]["code"]

    assert refusal({}, {"x-descant-tenant": "one"}) == (403, "identity_not_signed")
    assert refusal({}, {"x-descant-priority": "-9"}) == (403, "identity_not_signed")
    assert refusal({}, identity_headers(b"another key", "one", 0, "")) == (403, "identity_not_signed")
    assert refusal({"priority": -9}, {}) == (400, "unsupported_parameter")
    assert http.get("/internal/load").json()["verifies_identity"] is True
    server.stop()


def test_without_an_internal_key_no_header_says_whose_a_request_is(http):
    body = {"model": "tiny", "prompt": "a prompt that nobody owns, longer than a block of tokens " * 4, "max_tokens": 1}

    def num_cached(tenant: str) -> int:
        reply = http.post("/v1/completions", json=body, headers={"x-descant-tenant": tenant})
        return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert num_cached("one") == 0
    assert num_cached("two") > 0
