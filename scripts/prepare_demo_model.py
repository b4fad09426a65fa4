"""Reads the demo model's GGUF file once and keeps the result, so that no start has to: a part of the installation."""

from pathlib import Path

from descant_cli.up.options import find_model
from descant_engine.checkpoint import gguf_cache
from descant_engine.checkpoint.model_config import resolve
from descant_engine.config import EngineConfig


def main() -> None:
    model, _ = find_model(None)
    dtype = resolve(EngineConfig(model=model)).dtype
    gguf_cache.tokenizer_folder(Path(model))
    # The tests and `--dtype float32` want it, and the other is made of it in a second.
    gguf_cache.weights_folder(Path(model), gguf_cache.EXACT)
    gguf_cache.weights_folder(Path(model), dtype)


if __name__ == "__main__":
    main()
