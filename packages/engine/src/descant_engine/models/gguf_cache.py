"""GGUF files are dequantised by transformers once; the result is kept as safetensors, for the next start."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

FORMAT = 1


def dequantised_folder(file: Path, dtype: str) -> Path:
    """A folder with `file`'s tensors as model.safetensors in `dtype`; made if it is not there yet (3 to 15 s)."""
    folder = _cache_root() / f"{file.stem}-{_digest(file)}-{dtype}"
    if not (folder / "model.safetensors").is_file():
        _dequantise(file, dtype, folder)
    return folder


def _dequantise(file: Path, dtype: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=getattr(torch, dtype))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed whole: another process may be doing the same.
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        save_file(tensors, aside / "model.safetensors")
        aside.rename(folder)
    except OSError:
        if not (folder / "model.safetensors").is_file():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _digest(file: Path) -> str:
    """Changes with the file's place, size or time; reading 100 MB or 10 GB for a hash would cost the time saved."""
    status = file.stat()
    identity = f"{FORMAT}:{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "descant" / "gguf"
