"""What a model can be asked for: by its architecture, the files beside it, and the user's wish."""

from dataclasses import replace
from pathlib import Path

from descant_engine.checkpoint.config_file import ConfigFile
from descant_engine.checkpoint.sentence_transformers import read_pooling
from descant_engine.config import EngineConfig, ModelShape
from descant_engine.pooling import PoolingConfig, PoolingType, Task


def pooling_of(user: EngineConfig, shape: ModelShape, source: ConfigFile, folder: Path) -> PoolingConfig | None:
    """How vectors are made; None for a model that is only to generate.

    `folder`: where the model's files are.

    Raises:
        UnsupportedModelError: a kind of pooling that we don't have.
        ValueError: a wish that does not fit the model.
    """
    _check_wishes(user, shape)
    if user.runner == "generate" and is_bare_decoder(source) and not source.tie_word_embeddings:
        raise ValueError(
            f"runner=generate, but {', '.join(source.architectures or ())} comes without the head that generates"
        )
    if shape.encoder is not None and shape.encoder.is_cross_encoder:
        return PoolingConfig(type=PoolingType.CLS, normalize=False)
    if user.runner == "generate":
        return None
    pooling = read_pooling(folder, user.pooling_type) or _default_pooling(user, shape, source)
    if pooling is None:
        return None
    return replace(pooling, dimensions=_dimensions(user, source))


def tasks_of(
    user: EngineConfig, shape: ModelShape, source: ConfigFile, pooling: PoolingConfig | None
) -> tuple[Task, ...]:
    if shape.encoder is not None:
        return (Task.SCORE,) if shape.encoder.is_cross_encoder else (Task.EMBED,)
    if pooling is None:
        return (Task.GENERATE,)
    return (Task.EMBED,) if user.runner == "pooling" or is_bare_decoder(source) else (Task.GENERATE, Task.EMBED)


def is_bare_decoder(source: ConfigFile) -> bool:
    """A checkpoint without the head that generates, as embedding models are published."""
    named = source.architectures or ()
    return len(named) == 1 and named[0].endswith("Model")


def _check_wishes(user: EngineConfig, shape: ModelShape) -> None:
    if shape.encoder is not None and user.runner == "generate":
        raise ValueError(f"runner=generate, but {shape.architecture} is an encoder, which cannot generate")
    if shape.encoder is not None and user.enable_lora:
        raise ValueError(f"enable_lora, but {shape.architecture} is an encoder; adapters are for decoders")
    if user.runner == "generate" and user.pooling_type is not None:
        raise ValueError(f"pooling_type={user.pooling_type.value} needs a runner other than generate")


def _default_pooling(user: EngineConfig, shape: ModelShape, source: ConfigFile) -> PoolingConfig | None:
    if user.pooling_type is not None:
        return PoolingConfig(type=user.pooling_type)
    if shape.encoder is not None:
        return PoolingConfig(type=PoolingType.CLS)
    if user.runner == "pooling" or is_bare_decoder(source):
        return PoolingConfig(type=PoolingType.LAST)
    return None


def _dimensions(user: EngineConfig, source: ConfigFile) -> tuple[int, ...] | None:
    """By vLLM's names in the model's config."""
    if user.matryoshka_dimensions is not None:
        return user.matryoshka_dimensions
    if source.matryoshka_dimensions:
        return source.matryoshka_dimensions
    return () if source.is_matryoshka else None
