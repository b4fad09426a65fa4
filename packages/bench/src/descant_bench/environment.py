"""What a figure was measured on and with: without it nobody can repeat the measurement."""

import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from descant_bench.commit import git_commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    commit: str | None
    """None where there is no git checkout and nobody said which commit it is."""
    date: str
    command: str
    device: str
    torch: str
    python: str


def describe_environment(device: str, commit: str | None = None) -> Environment:
    """`device` is "cpu" or "cuda"; `commit` is for machines that have a copy of the tree and no git."""
    return Environment(
        commit=commit or git_commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv),
        device=device_name(device),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def command_line(argv: Sequence[str]) -> str:
    """As one would type it elsewhere: absolute paths are of this machine, and their last part is what they are."""
    program, *arguments = argv
    if not program.startswith("descant "):
        path = Path(program)
        is_module = path.parent.name == __package__
        program = f"python -m {__package__}.{path.stem}" if is_module else f"python {path.parent.name}/{path.name}"
    return shlex.join(
        [*program.split(), *(Path(each).name if Path(each).is_absolute() else each for each in arguments)]
    )


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def peak_memory_bytes(device: str) -> int:
    """Of the device's tensors; on the CPU of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
