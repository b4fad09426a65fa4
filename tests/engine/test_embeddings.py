"""Vectors and scores equal transformers', however the texts come: alone, mixed, in chunks, beside generation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from descant_engine import LLM, AsyncEngine, EngineConfig, SamplingParams
from descant_engine.checkpoint.model_config import UnsupportedModelError, resolve
from descant_engine.config import Device
from descant_engine.frontend import PromptTooLong, Text
from descant_engine.pooling import InvalidDimensions, PoolingType, UnsupportedTask
from descant_engine.pooling_inputs import InputTooLong, Pair, PoolingInputs
from descant_engine.scheduler.admission import RequestRefused
from descant_engine.text.tokenizer import Tokenizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TEXTS = ["Hello world", "A man is eating food.", "", "The quick brown fox jumps over the lazy dog. " * 4, "Hello world"]
TOKENS = [[5, 9, 11], [250], list(range(20, 95)), [7, 7, 7, 7], list(range(100, 140))]
SHAPE = {
    "vocab_size": 264,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}


def save_bert(folder: Path, tokenizer_of: Path, *, is_cross_encoder: bool = False, **config: object) -> Path:
    torch.manual_seed(3)
    settings = BertConfig(**(SHAPE | config), num_labels=1)  # type: ignore[arg-type]
    model = (BertForSequenceClassification if is_cross_encoder else BertModel)(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return folder


def expected_vector(
    model: Path, token_ids: list[int], kind: PoolingType, adapter: Path | None = None, dimensions: int | None = None
) -> np.ndarray:
    oracle = AutoModel.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        oracle = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
        oracle = oracle.merge_and_unload().model
    with torch.inference_mode():
        hidden = oracle.eval()(torch.tensor([token_ids])).last_hidden_state[0]
    pooled = {PoolingType.MEAN: hidden.mean(0), PoolingType.LAST: hidden[-1], PoolingType.CLS: hidden[0]}[kind]
    return torch.nn.functional.normalize(pooled[:dimensions], dim=0).numpy()


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), tiny_llama)


@pytest.mark.parametrize("device", DEVICES)
def test_minilm_gives_transformers_vectors(minilm_path: Path, device: Device) -> None:
    llm = LLM(minilm_path, device=device, dtype="float32")
    vectors = llm.embed(TEXTS, use_tqdm=False)
    tokenizer, oracle = AutoTokenizer.from_pretrained(minilm_path), AutoModel.from_pretrained(minilm_path)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.inference_mode():
            hidden = oracle(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.mean(0).numpy()
        assert np.dot(vector, mean) / np.linalg.norm(mean) >= 0.9999
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    assert llm.stats().block_usage == 0
    with pytest.raises(InputTooLong, match="302 tokens, but this model takes 256"):
        llm.embed("word " * 300)
    with pytest.raises(UnsupportedTask, match=r"does not do 'generate'.*it does embed"):
        llm.generate("Hello")
    llm.close()


def test_minilm_in_bfloat16_points_the_same_way(minilm_path: Path) -> None:
    vectors = [
        LLM(minilm_path, device="cpu", dtype=dtype).embed(TEXTS, use_tqdm=False) for dtype in ("float32", "bfloat16")
    ]
    assert (vectors[0] * vectors[1]).sum(1).min() >= 0.999


@pytest.mark.parametrize("kind", PoolingType)
def test_an_encoder_computes_texts_whole(tiny_bert: Path, kind: PoolingType) -> None:
    llm = LLM(tiny_bert, device="cpu", dtype="float32", pooling_type=kind, max_num_batched_tokens=80, max_num_seqs=2)
    vectors = llm.embed([*TOKENS, *TOKENS], use_tqdm=False)
    for token_ids, vector in zip([*TOKENS, *TOKENS], vectors, strict=True):
        np.testing.assert_allclose(vector, expected_vector(tiny_bert, token_ids, kind), atol=1e-5)
    llm._engine.check_integrity()
    with pytest.raises(RequestRefused, match=r"90 tokens.*max_num_batched_tokens=80"):
        llm.embed([[3] * 90], use_tqdm=False)
    llm.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", PoolingType)
def test_a_decoder_computes_texts_in_chunks_beside_generation(
    tiny_llama: Path, tiny_adapters: dict[str, Path], kind: PoolingType, device: Device
) -> None:
    options = {"device": device, "num_blocks": 200, "dtype": "float32", "max_num_seqs": 4, "block_size": 4}
    llm = LLM(tiny_llama, pooling_type=kind, max_num_batched_tokens=16, enable_lora=True, **options)  # type: ignore[arg-type]
    llm.load_adapter("all", tiny_adapters["all"])
    alone = llm.generate([TOKENS[2]], SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)[0].token_ids
    for _ in range(2):  # the second time, beginnings are in the prefix cache
        for adapter in (None, "all"):
            vectors = llm.embed(TOKENS, adapter=adapter, use_tqdm=False)
            folder = None if adapter is None else tiny_adapters["all"]
            for token_ids, vector in zip(TOKENS, vectors, strict=True):
                np.testing.assert_allclose(vector, expected_vector(tiny_llama, token_ids, kind, folder), atol=1e-5)
    assert llm.generate([TOKENS[2]], SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)[0].token_ids == alone
    llm._engine.check_integrity()
    llm.close()


def test_a_preempted_text_is_computed_again(tiny_llama: Path) -> None:
    pool = {"num_blocks": 12, "block_size": 8, "max_num_batched_tokens": 4, "max_model_len": 96}
    llm = LLM(tiny_llama, device="cpu", dtype="float32", pooling_type=PoolingType.MEAN, **pool)  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    text = list(range(1, 60))
    llm._engine.submit(llm._frontend.request(tuple(range(23)), params, request_id="grows"))
    llm._engine.submit(llm._pooling_inputs.request(llm._pooling_inputs.encode(text), request_id="gives way"))
    vectors = []
    while llm._engine.has_work:
        vectors += [delta.pooled for delta in llm._engine.step() if delta.pooled is not None]
    assert llm.stats().num_preemptions > 0
    (vector,) = vectors
    expected = expected_vector(tiny_llama, text, PoolingType.MEAN)
    np.testing.assert_allclose(np.frombuffer(vector, dtype=np.float32), expected, atol=1e-5)


def test_matryoshka_vectors_are_cut_and_then_normalized(tiny_bert: Path) -> None:
    llm = LLM(tiny_bert, device="cpu", dtype="float32", matryoshka_dimensions=(8, 16))
    np.testing.assert_allclose(
        llm.embed([TOKENS[0]], dimensions=16, use_tqdm=False)[0],
        expected_vector(tiny_bert, TOKENS[0], PoolingType.CLS, dimensions=16),
        atol=1e-5,
    )
    with pytest.raises(InvalidDimensions, match="12 is none that this model was trained for: 8, 16"):
        llm.embed([TOKENS[0]], dimensions=12, use_tqdm=False)


def test_a_vector_s_own_dimensions_need_no_training(tiny_bert: Path) -> None:
    llm = LLM(tiny_bert, device="cpu", dtype="float32")
    whole = llm.embed([TOKENS[0]], use_tqdm=False)
    np.testing.assert_array_equal(llm.embed([TOKENS[0]], dimensions=whole.shape[1], use_tqdm=False), whole)
    with pytest.raises(InvalidDimensions, match="was not trained for shorter ones"):
        llm.embed([TOKENS[0]], dimensions=16, use_tqdm=False)
    fixed = LLM(tiny_bert, device="cpu", dtype="float32", matryoshka_dimensions=(8, 16))
    np.testing.assert_array_equal(fixed.embed([TOKENS[0]], dimensions=whole.shape[1], use_tqdm=False), whole)


@pytest.mark.parametrize("has_sigmoid", [True, False])
def test_a_cross_encoder_reads_pairs_together(tmp_path: Path, minilm_path: Path, has_sigmoid: bool) -> None:
    activation = {} if has_sigmoid else {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    folder = save_bert(tmp_path, minilm_path, is_cross_encoder=True, vocab_size=30522, **activation)
    documents = ["yes", "an apple a day keeps the doctor away", "perhaps"]
    scores = LLM(folder, device="cpu", dtype="float32").score("what keeps the doctor away?", documents, use_tqdm=False)
    tokenizer, oracle = (
        AutoTokenizer.from_pretrained(folder),
        BertForSequenceClassification.from_pretrained(folder).eval(),
    )
    for document, score in zip(documents, scores, strict=True):
        with torch.inference_mode():
            logit = oracle(**tokenizer("what keeps the doctor away?", document, return_tensors="pt")).logits[0, 0]
        np.testing.assert_allclose(score, logit.sigmoid() if has_sigmoid else logit, atol=1e-5)


def test_checkpoints_of_other_tasks_and_bare_decoders_load(
    tmp_path: Path, tiny_bert: Path, random_model: Callable[..., Path]
) -> None:
    masked = tmp_path / "masked"
    BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(masked)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(masked)
    bare, llama = tmp_path / "bare", random_model("llama")
    AutoModel.from_pretrained(llama).save_pretrained(bare)
    AutoTokenizer.from_pretrained(llama).save_pretrained(bare)
    for folder, source, kind in ((masked, tiny_bert, PoolingType.CLS), (bare, llama, PoolingType.LAST)):
        llm = LLM(folder, device="cpu", dtype="float32")
        vector = llm.embed([TOKENS[2]], use_tqdm=False)[0]
        np.testing.assert_allclose(vector, expected_vector(source, TOKENS[2], kind), atol=1e-5)
        with pytest.raises(UnsupportedTask):
            llm.generate("x")


async def test_vectors_cross_the_process_border(tiny_bert: Path, tiny_llama: Path) -> None:
    engine = await AsyncEngine.start(EngineConfig(model=str(tiny_bert), device="cpu", dtype="float32"))
    try:
        streams = [await engine.submit_pooling(token_ids) for token_ids in TOKENS]
        for token_ids, stream in zip(TOKENS, streams, strict=True):
            output = await anext(stream)
            vector = np.frombuffer(output.pooled or b"", dtype=np.float32)
            np.testing.assert_allclose(vector, expected_vector(tiny_bert, token_ids, PoolingType.CLS), atol=1e-5)
            assert output.usage.prompt_tokens == len(token_ids)
            assert output.usage.completion_tokens == 0
        with pytest.raises(UnsupportedTask, match="'score'"):
            await engine.submit_pooling(Pair("a", "b"))
        with pytest.raises(UnsupportedTask, match="'generate'"):
            await engine.submit("x", SamplingParams())
        assert engine.num_unfinished_requests == 0
    finally:
        await engine.close()


def test_wishes_that_do_not_fit_are_refused_by_name(tmp_path: Path, tiny_bert: Path, tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match="runner=generate, but BertModel is an encoder"):
        resolve(EngineConfig(model=str(tiny_bert), runner="generate"))
    with pytest.raises(ValueError, match="adapters are for decoders"):
        resolve(EngineConfig(model=str(tiny_bert), enable_lora=True))
    with pytest.raises(UnsupportedTask, match="--runner pooling"):
        LLM(tiny_llama, device="cpu", load_format="dummy").embed("x")
    config = json.loads((tiny_bert / "config.json").read_text())
    for change, reason in (
        ({"hidden_act": "silu"}, "'silu'"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}, "2 labels"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UnsupportedModelError, match=reason):
            resolve(EngineConfig(model=str(tmp_path), device="cpu"))


def test_a_text_too_long_to_be_cut_is_refused_without_encoding_it(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = resolve(EngineConfig(model=str(tiny_bert), device="cpu"))
    tokenizer = Tokenizer.load(str(tiny_bert))
    for name in ("encode", "encode_start", "encode_pair"):
        monkeypatch.setattr(tokenizer, name, lambda *_, **__: pytest.fail("it was encoded"))
    text = "x" * ((1 << 20) + 1)
    for given in (text, Text(text), Pair("x", text[1:])):
        with pytest.raises(PromptTooLong, match=r"1048577 characters.* at most 1048576"):
            PoolingInputs(config, tokenizer).encode(given, keep_first=8)
