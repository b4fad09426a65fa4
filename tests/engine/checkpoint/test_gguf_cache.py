"""GGUF files: the numbers transformers reads, and read by it only once."""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from descant_engine.checkpoint import gguf_cache
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig
from descant_engine.models import load_model

from ..paged_model import BlockPool, PagedModel  # noqa: TID252

HIDDEN, INTERMEDIATE, VOCAB, LAYERS, HEADS, KV_HEADS = 64, 96, 40, 2, 4, 2
TOKENS = [3, 17, 25, 9, 9, 31]


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_llama(tmp_path / "tiny.gguf")


def write_llama(path: Path, seed: int = 0) -> Path:
    """A random Llama in GGUF's names and layout, unquantized."""
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([1] * VOCAB)
    writer.add_eos_token_id(2)
    kv_width = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCAB, HIDDEN),
        "output_norm": (HIDDEN,),
        "output": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k": (kv_width, HIDDEN),
            f"blk.{layer}.attn_v": (kv_width, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_gate": (INTERMEDIATE, HIDDEN),
            f"blk.{layer}.ffn_up": (INTERMEDIATE, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, INTERMEDIATE),
        }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_of(path: Path) -> torch.Tensor:
    config = resolve(EngineConfig(model=str(path), dtype="float32", device="cpu"))
    return PagedModel(load_model(config), BlockPool(config.shape)).logits(TOKENS, [4, 1, 1])


def test_logits_equal_transformers(gguf_file: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs.eval()(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(logits_of(gguf_file), expected, rtol=1e-3, atol=1e-3)


def test_the_second_start_reads_what_the_first_kept(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = logits_of(gguf_file)

    def read_again(*_: object, **__: object) -> None:
        raise AssertionError("the file was read a second time")

    monkeypatch.setattr(gguf, "GGUFReader", read_again)
    assert torch.equal(logits_of(gguf_file), first)


def test_another_dtype_is_made_of_what_is_kept_exactly(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directly = load_file(gguf_cache.weights_folder(gguf_file, "bfloat16") / "model.safetensors")
    shutil.rmtree(gguf_cache.weights_folder(gguf_file, "bfloat16"))
    gguf_cache.weights_folder(gguf_file, "float32")
    monkeypatch.setattr(gguf, "GGUFReader", pytest.fail)
    of_the_kept = load_file(gguf_cache.weights_folder(gguf_file, "bfloat16") / "model.safetensors")
    assert directly.keys() == of_the_kept.keys()
    assert all(torch.equal(directly[name], of_the_kept[name]) for name in directly)
    assert {tensor.dtype for tensor in of_the_kept.values()} == {torch.bfloat16}


def test_a_changed_file_is_read_anew(gguf_file: Path) -> None:
    first = logits_of(gguf_file)
    write_llama(gguf_file, seed=1)
    assert not torch.equal(logits_of(gguf_file), first)
