"""The config of an encoder, as numbers."""

from typing import Final

from descant_engine.checkpoint.config_file import ENCODER_TYPES, BertFile
from descant_engine.checkpoint.unsupported import UnsupportedModelError
from descant_engine.config import EncoderShape, ModelShape, RopeScaling

CROSS_ENCODERS: Final = {"bert": "BertForSequenceClassification"}
ACTIVATIONS: Final = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
NO_ROTATION: Final = RopeScaling(kind="default", theta=1.0)


def encoder_shape(source: BertFile) -> ModelShape:
    """Raises UnsupportedModelError: a variant that we don't have; says which."""
    _refuse_variants(source)
    is_cross_encoder = CROSS_ENCODERS[source.model_type] in (source.architectures or ())
    if is_cross_encoder and source.num_outputs != 1:
        raise UnsupportedModelError(
            f"a classifier with {source.num_outputs} labels is not supported; supported are cross-encoders with one"
        )
    return ModelShape(
        architecture=(CROSS_ENCODERS if is_cross_encoder else ENCODER_TYPES)[source.model_type],
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_layers=source.num_hidden_layers,
        num_q_heads=source.num_attention_heads,
        num_kv_heads=source.num_attention_heads,
        head_dim=source.hidden_size // source.num_attention_heads,
        rms_norm_eps=source.layer_norm_eps,
        max_position=source.max_position_embeddings,
        rope=NO_ROTATION,
        tie_word_embeddings=True,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        encoder=EncoderShape(
            activation=ACTIVATIONS[source.hidden_act],  # type: ignore[arg-type]
            type_vocab_size=source.type_vocab_size,
            is_cross_encoder=is_cross_encoder,
            has_sigmoid=is_cross_encoder and not _leaves_scores_alone(source),
        ),
    )


def _refuse_variants(source: BertFile) -> None:
    if source.hidden_act not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"activation {source.hidden_act!r} is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    if source.position_embedding_type != "absolute":
        raise UnsupportedModelError(f"position embeddings {source.position_embedding_type!r} are not supported")
    if source.is_decoder:
        raise UnsupportedModelError(f"{source.model_type} as a decoder is not supported")


def _leaves_scores_alone(source: BertFile) -> bool:
    """sentence-transformers' cross-encoders put a sigmoid over their score unless their config says otherwise."""
    newer = source.sentence_transformers or {}
    name = newer.get("activation_fn") or source.sbert_ce_default_activation_function or ""
    return bool(name.endswith("Identity"))
