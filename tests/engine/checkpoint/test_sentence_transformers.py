import json
from pathlib import Path

import pytest

from descant_engine.checkpoint.sentence_transformers import read_pooling
from descant_engine.checkpoint.unsupported import UnsupportedModelError
from descant_engine.pooling import PoolingType


def write(folder: Path, pooling: dict[str, object], *stages: str) -> Path:
    kinds = ("Transformer", "Pooling", *stages)
    modules = [
        {"idx": i, "path": f"{i}", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1").mkdir()
    (folder / "1" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_minilm_says_how_its_vectors_are_made(minilm_path: Path) -> None:
    pooling = read_pooling(minilm_path, None)
    assert pooling is not None
    assert (pooling.type, pooling.normalize, pooling.max_tokens) == (PoolingType.MEAN, True, 256)
    overridden = read_pooling(minilm_path, PoolingType.CLS)
    assert overridden is not None
    assert overridden.type is PoolingType.CLS


@pytest.mark.parametrize(
    "written", [{"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "lasttoken"}]
)
def test_both_ways_to_write_a_mode_are_read(tmp_path: Path, written: dict[str, object]) -> None:
    pooling = read_pooling(write(tmp_path, written), None)
    assert pooling is not None
    assert (pooling.type, pooling.normalize) == (PoolingType.LAST, False)


@pytest.mark.parametrize(
    "written",
    [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}],
)
def test_other_poolings_are_refused_unless_overridden(tmp_path: Path, written: dict[str, object]) -> None:
    folder = write(tmp_path, written)
    with pytest.raises(UnsupportedModelError, match="supported are one of mean, last, cls"):
        read_pooling(folder, None)
    assert read_pooling(folder, PoolingType.MEAN) is not None


def test_other_stages_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="the stage Dense"):
        read_pooling(write(tmp_path, {"pooling_mode_cls_token": True}, "Dense"), None)


def test_a_folder_without_modules_describes_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, PoolingType.MEAN) is None
