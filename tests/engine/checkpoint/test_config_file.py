"""transformers' own config classes as the oracle: what they make of a file, this module reads from it."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from descant_engine.checkpoint.config_file import BertFile, LlamaFile, read_config_file

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
FIELDS = (
    {},
    {"num_key_value_heads": 4, "head_dim": 32, "hidden_size": 256, "num_attention_heads": 8},
    {"eos_token_id": [5, 6], "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    {"eos_token_id": None, "attention_bias": True, "mlp_bias": True},
    {"sliding_window": 100, "use_sliding_window": True},
    {"sliding_window": None},
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 900, **LLAMA3}},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 700},
    {"rope_parameters": {"rope_theta": 3e4, **YARN}, "original_max_position_embeddings": 300},
    {"rope_parameters": {"rope_theta": 3e4}, "partial_rotary_factor": 0.5},
    {"architectures": ["SomethingModel"], "matryoshka_dimensions": [64, 32], "is_matryoshka": True},
)
SAME = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "tie_word_embeddings",
)  # fmt: skip


def both(folder: Path, fields: dict[str, object]):  # type: ignore[no-untyped-def]
    (folder / "config.json").write_text(json.dumps(fields))
    return read_config_file(folder), AutoConfig.from_pretrained(folder)


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        *((model_type, fields) for model_type in DECODERS for fields in FIELDS),
        ("llama", {"head_dim": None, "num_key_value_heads": None}),
        ("qwen2", {"num_key_value_heads": None}),
    ],
    ids=lambda value: ",".join(value) or "defaults" if isinstance(value, dict) else value,
)
def test_a_decoder_s_file_is_read_as_transformers_reads_it(
    tmp_path: Path, model_type: str, fields: dict[str, object]
) -> None:
    ours, theirs = both(tmp_path, {"model_type": model_type} | fields)
    assert isinstance(ours, LlamaFile)
    for name in (*SAME, "rms_norm_eps", "eos_token_id", "architectures"):
        assert listed(getattr(ours, name)) == getattr(theirs, name), name
    for name in ("attention_bias", "mlp_bias", "is_matryoshka"):
        assert getattr(ours, name) == getattr(theirs, name, False), name
    assert listed(ours.matryoshka_dimensions) == getattr(theirs, "matryoshka_dimensions", None)
    assert (ours.num_key_value_heads or ours.num_attention_heads) == theirs.num_key_value_heads
    width = ours.head_dim or ours.hidden_size // ours.num_attention_heads
    assert width == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.window == getattr(theirs, "sliding_window", None)
    # Where the file gives no original length, `model_config` takes the whole, as transformers writes it.
    whole = {"original_max_position_embeddings": ours.max_position_embeddings}
    assert whole | ours.rope == whole | theirs.rope_parameters


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id2label": {"0": "LABEL_0"}, "architectures": ["BertForSequenceClassification"]},
        {"num_labels": 5, "hidden_act": "relu", "layer_norm_eps": 1e-5, "type_vocab_size": 3},
        {"is_decoder": True, "position_embedding_type": "relative_key"},
        {"sentence_transformers": {"activation_fn": "x"}, "sbert_ce_default_activation_function": "y"},
    ],
    ids=lambda fields: ",".join(fields) or "defaults",
)
def test_an_encoder_s_file_is_read_as_transformers_reads_it(tmp_path: Path, fields: dict[str, object]) -> None:
    ours, theirs = both(tmp_path, {"model_type": "bert"} | fields)
    assert isinstance(ours, BertFile)
    for name in (*SAME, "type_vocab_size", "layer_norm_eps", "is_decoder"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_outputs == theirs.num_labels
    assert ours.position_embedding_type == getattr(theirs, "position_embedding_type", "absolute")
    for name in ("sentence_transformers", "sbert_ce_default_activation_function"):
        assert getattr(ours, name) == getattr(theirs, name, None), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "96"}, "hidden_size is '96', which is no int"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_key_value_heads": 2.5}, "num_key_value_heads is 2.5"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id is '2'"),
        ({"rope_parameters": []}, "rope_parameters is"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"model_type": 5}, "no model_type"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | changes))
    with pytest.raises(ValueError, match=message):
        read_config_file(tmp_path)
