"""A GGUF file is read by transformers once, which takes seconds; the result is kept as an ordinary model folder."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
"""Raised when what is kept changes, so that older entries are not read."""
EXACT = "float32"
"""What is kept in this dtype serves for every other; the file need not be read again."""


def config_folder(file: Path) -> Path:
    """A folder with `file`'s config.json; made if it is not there yet (2 to 5 s)."""

    def write(aside: Path) -> None:
        from transformers import AutoConfig

        AutoConfig.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(aside)

    return _made_once(_entry(file, "config"), write)


def tokenizer_folder(file: Path) -> Path:
    """A folder with `file`'s tokenizer and chat template; made if it is not there yet (2 to 5 s)."""

    def write(aside: Path) -> None:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(aside)

    return _made_once(_entry(file, "tokenizer"), write)


def weights_folder(file: Path, dtype: str) -> Path:
    """A folder with `file`'s tensors, dequantised, as model.safetensors in `dtype`; made if need be (3 to 20 s)."""

    def write(aside: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        exact = _entry(file, EXACT) / "model.safetensors"
        state = load_file(exact) if exact.is_file() else _dequantised(file)
        save_file(
            {name: tensor.to(getattr(torch, dtype)).contiguous() for name, tensor in state.items()},
            aside / "model.safetensors",
        )

    return _made_once(_entry(file, dtype), write)


def _dequantised(file: Path) -> "dict[str, Tensor]":
    """Every tensor of `file`, in float32 and by transformers' names."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # Given the configuration, transformers reads the file once less.
    config = AutoConfig.from_pretrained(config_folder(file))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config, dtype=torch.float32)
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _made_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Written aside and renamed whole, because another process may be doing the same."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        write(aside)
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _entry(file: Path, kind: str) -> Path:
    """Changes with the file's place, size or time: to hash 10 GB would cost the time that is to be saved."""
    status = file.stat()
    identity = f"{FORMAT}:{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "descant" / "gguf" / f"{file.stem}-{digest}-{kind}"
