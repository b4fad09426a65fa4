"""Between host and device, without waiting."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_SIGNED = {2: torch.int16, 4: torch.int32}


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of `array` on `device`. On CUDA the copy goes through fresh pinned memory, so the host runs on and
    no buffer is ever shared between a copy in flight and the next step's host code.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return _pinned(tensor).to(device, non_blocking=True)


def send(array: npt.NDArray[Any], target: Tensor) -> None:
    """Copies `array` into `target`, which is contiguous and of its shape and dtype; on CUDA as `to_device` does."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    target.copy_(_pinned(tensor) if target.is_cuda else tensor, non_blocking=True)


def _pinned(tensor: Tensor) -> Tensor:
    """As `tensor.pin_memory()`, but copied by this thread: of a grammar's masks torch would copy a part on every core,
    and its threads would then spin for the next step's (15 cores of 16, measured at 64 rows)."""
    pinned = torch.empty_like(tensor, pin_memory=True)
    np.copyto(pinned.numpy(), tensor.numpy())
    return pinned


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host. From CUDA it goes into fresh pinned memory, and is there once an event that is recorded
    after this call has come."""
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def words_of(tensor: Tensor) -> npt.NDArray[Any]:
    """A CPU tensor's bits as unsigned integers of its dtype's width, without a copy: numpy has no bfloat16."""
    size = tensor.element_size()
    return tensor.view(_SIGNED[size]).numpy().view(f"u{size}")


def tensor_of(words: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    """What `words_of` undoes."""
    return torch.from_numpy(words.view(f"i{words.itemsize}")).view(dtype)
