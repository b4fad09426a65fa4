"""What sentence-transformers writes beside a model: how its vectors are made. Plain JSON; the library is not needed.

`modules.json` lists the stages: Transformer, Pooling, Normalize, each with a folder of its own.
"""

import json
from pathlib import Path
from typing import Any

from descant_engine.checkpoint.unsupported import UnsupportedModelError
from descant_engine.pooling import PoolingConfig, PoolingType

MODES = {
    "pooling_mode_cls_token": PoolingType.CLS,
    "pooling_mode_mean_tokens": PoolingType.MEAN,
    "pooling_mode_lasttoken": PoolingType.LAST,
}
STAGES = ("Transformer", "Pooling", "Normalize")


def read_pooling(folder: Path, wanted: PoolingType | None) -> PoolingConfig | None:
    """The pooling that the folder describes, `wanted` in place of its type; None if it describes none.

    Raises:
        UnsupportedModelError: stages or a kind of pooling that we don't have.
    """
    if not (folder / "modules.json").is_file():
        return None
    stages = {stage["type"].rpartition(".")[2]: folder / stage["path"] for stage in _read(folder / "modules.json")}
    if unknown := [name for name in stages if name not in STAGES]:
        raise UnsupportedModelError(f"{folder}/modules.json: the stage {unknown[0]} is not supported")
    if "Pooling" not in stages and wanted is None:
        return None
    return PoolingConfig(
        type=wanted or _type_of(stages["Pooling"] / "config.json"),
        normalize="Normalize" in stages,
        max_tokens=_max_tokens(folder / "sentence_bert_config.json"),
    )


def _type_of(file: Path) -> PoolingType:
    settings = _read(file)
    if mode := settings.get("pooling_mode"):  # version 5's way to write it
        chosen = [mode] if isinstance(mode, str) else list(mode)
        types = [
            PoolingType({"lasttoken": "last"}.get(name, name))
            for name in chosen
            if name in ("cls", "mean", "lasttoken")
        ]
    else:
        chosen = [name for name, is_on in settings.items() if name.startswith("pooling_mode_") and is_on]
        types = [MODES[name] for name in chosen if name in MODES]
    if len(chosen) != 1 or len(types) != 1:
        raise UnsupportedModelError(
            f"{file}: pooling by {' and '.join(chosen) or 'nothing'} is not supported; supported are one of"
            f" {', '.join(PoolingType)}, which --pooling-type also sets"
        )
    return types[0]


def _max_tokens(file: Path) -> int | None:
    found = _read(file).get("max_seq_length") if file.is_file() else None
    return None if found is None else int(found)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{file} cannot be read: {error}") from error
