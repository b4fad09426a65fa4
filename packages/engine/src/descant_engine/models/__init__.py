"""`load_model` builds the architecture that the config names, with its weights, ready to run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from descant_engine.config import ModelShape, ResolvedConfig
from descant_engine.layers.current_ops import deterministic_ops
from descant_engine.layers.embedding import LmHead
from descant_engine.layers.linear import Linear
from descant_engine.layers.lora import wrap_linears
from descant_engine.models.bert import BertModel
from descant_engine.models.llama import LlamaForCausalLM
from descant_engine.models.registry import ENCODERS, MODELS
from descant_engine.models.weights import checkpoint_tensors, fill, fill_with_random

__all__ = ["attach_lora", "load_encoder", "load_model"]

ModelT = TypeVar("ModelT", LlamaForCausalLM, BertModel)


def load_model(config: ResolvedConfig) -> LlamaForCausalLM:
    """On its device, in its dtype, without gradients. See `models.llama` for what it takes and returns.

    Raises:
        UnsupportedModelError: no weights where the config points, or weights that do not fit; names file and tensor.
    """
    # The rotary table is the one tensor whose size is the context's: no longer than it will be used.
    return _load(config, replace(config.shape, max_position=config.max_model_len), MODELS)


def load_encoder(config: ResolvedConfig) -> BertModel:
    """Like `load_model`; see `models.bert`."""
    return _load(config, config.shape, ENCODERS)


def _load(config: ResolvedConfig, shape: ModelShape, classes: Mapping[str, type[ModelT]]) -> ModelT:
    ops = deterministic_ops() if config.user.deterministic else nullcontext()
    with ops, _built_as(torch.device(config.device), getattr(torch, config.dtype)):
        model = classes[shape.architecture](shape)
    model.requires_grad_(False).eval()
    if config.user.load_format == "dummy":
        fill_with_random(model, config.user.seed)
    else:
        fill(model, checkpoint_tensors(config.user.model, config.dtype), model.place_of)
    for module in model.modules():
        if isinstance(module, Linear | LmHead):
            module.finish_loading()
    return model


def attach_lora(model: nn.Module) -> None:
    """From now on the model's linear layers heed `current_step().lora`."""
    wrap_linears(model)


@contextmanager
def _built_as(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)
