"""Where on this machine adapters may lie: those of a folder that is offered whole, and those that clients name."""

import os
from dataclasses import dataclass
from pathlib import Path

from descant_wire.errors import ApiError, ErrorDetail, not_found

CONFIG_NAME = "adapter_config.json"


class AdapterFolderError(ValueError):
    """The folder of adapters cannot be offered; the message says why."""


def find_adapters(folder: Path) -> dict[str, Path]:
    """Name -> PEFT folder, for each folder in `folder` that has an adapter_config.json. No file is opened.

    Raises:
        AdapterFolderError: it is not a folder that can be read, or holds no adapter.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if os.path.isfile(os.path.join(entry.path, CONFIG_NAME)))
    except OSError as error:
        raise AdapterFolderError(f"cannot read the folder of adapters: {error}") from None
    if not names:
        raise AdapterFolderError(f"{folder} holds no adapters: each must be a folder of its own with {CONFIG_NAME}")
    return {name: folder / name for name in names}


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """Which folders POST /v1/load_lora_adapter may load: those inside `root`, or any, or none."""

    root: Path | None
    anywhere: bool

    @property
    def is_open(self) -> bool:
        return self.anywhere or self.root is not None

    def resolve(self, lora_path: str) -> Path:
        """The folder that a client means; relative paths begin at the root. What comes back has no symbolic links.

        Raises:
            ApiError: 403, loading is not allowed, or not from there; 404, there is no such folder.
        """
        self.check_open()
        folder = Path(self.root or "", lora_path).resolve()
        if self.root is not None and not self.anywhere:
            self._check_inside(folder, self.root.resolve())
        if not folder.is_dir():
            raise not_found(f"There is no folder {lora_path!r} on the server.", param="lora_path")
        return folder

    def check_open(self) -> None:
        """Raises ApiError 403 if no client may change what is served."""
        if not self.is_open:
            raise _forbidden(
                "This server's adapters were fixed at its start. Start it with --lora-root FOLDER to let clients load"
                " from inside that folder, or with --allow-runtime-lora to let them load from anywhere.",
                "runtime_lora_disabled",
            )

    def _check_inside(self, folder: Path, root: Path) -> None:
        # The files too: a link inside the root must not lead out of it.
        for path in (folder, *(file.resolve() for file in _files(folder))):
            if not path.is_relative_to(root):
                raise _forbidden("Adapters are loaded only from inside the server's --lora-root.", "outside_lora_root")


NO_RUNTIME_PATHS = RuntimePaths(root=None, anywhere=False)


def _files(folder: Path) -> list[Path]:
    return [folder / CONFIG_NAME, folder / "adapter_model.safetensors"]


def _forbidden(message: str, code: str) -> ApiError:
    detail = ErrorDetail(message=message, type="permission_error", param="lora_path", code=code)
    return ApiError(403, detail)
