"""A folder of adapters is served without being read, and clients load only from where the operator allows."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import httpx
import pytest

from descant_server.adapter_paths import AdapterFolderError, RuntimePaths, find_adapters
from descant_wire.errors import ApiError

ASK = {"prompt": "once", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def _edit_config(folder: Path, **fields: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module")
def folder(save_adapter: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good ones, and two that cannot be served."""
    root = tmp_path_factory.mktemp("lora-dir")
    for seed in (1, 2):
        copytree(save_adapter(seed), root / f"good-{seed}")
    copytree(root / "good-1", root / "dora")
    _edit_config(root / "dora", use_dora=True)
    copytree(root / "good-1", root / "truncated")
    weights = root / "truncated" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (root / "no-adapter").mkdir()
    return root


@pytest.fixture(scope="module")
def http(start_server, folder: Path):
    server = start_server("--lora-dir", str(folder)).wait_until_ready()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def _models(http: httpx.Client) -> set[str]:
    return {card["id"] for card in http.get("/v1/models").json()["data"]}


def _complete(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/completions", json=ASK | {"model": model})


def test_adapters_are_read_when_first_named_and_bad_ones_concern_only_who_names_them(http, folder: Path) -> None:
    assert _models(http) == {"tiny", "good-1", "good-2", "dora", "truncated"}
    texts = {_complete(http, model).json()["choices"][0]["text"] for model in ("tiny", "good-1", "good-2")}
    assert len(texts) == 3
    for model, reason in (("dora", "use_dora"), ("truncated", "truncated")):
        for _ in range(2):
            refused = _complete(http, model)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "adapter_refused")
            assert reason in refused.json()["error"]["message"]
            assert str(folder) not in refused.json()["error"]["message"]
    assert _models(http) == {"tiny", "good-1", "good-2"}
    assert http.get("/v1/models/dora").status_code == 404
    _edit_config(folder / "dora", use_dora=False)
    assert (
        _complete(http, "dora").json()["choices"][0]["text"] == _complete(http, "good-1").json()["choices"][0]["text"]
    )
    assert "dora" in _models(http), "what was mended is served"


def test_clients_load_from_inside_the_folder_only(http, folder: Path, save_adapter: Callable[[int], Path]) -> None:
    inside = http.post("/v1/load_lora_adapter", json={"lora_name": "again", "lora_path": "good-2"})
    assert inside.status_code == 200
    outside = http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(save_adapter(5))})
    assert (outside.status_code, outside.json()["error"]["code"]) == (403, "outside_lora_root")
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "again"}).status_code == 200
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "good-2"}).status_code == 200
    assert _complete(http, "good-2").status_code == 404


def test_names_of_the_folder_are_found_without_opening_a_file(folder: Path) -> None:
    assert list(find_adapters(folder)) == ["dora", "good-1", "good-2", "truncated"]
    with pytest.raises(AdapterFolderError, match="holds no adapters"):
        find_adapters(folder / "no-adapter")
    with pytest.raises(AdapterFolderError, match="cannot read"):
        find_adapters(folder / "not-there")


def test_a_thousand_adapters_are_offered_in_no_time(tmp_path: Path) -> None:
    for index in range(1000):
        (tmp_path / f"{index:04d}").mkdir()
        (tmp_path / f"{index:04d}" / "adapter_config.json").write_text("{}")
    start = time.process_time()
    assert len(find_adapters(tmp_path)) == 1000
    assert time.process_time() - start < 1


@pytest.mark.parametrize("way", ["../outside", "link", "inside/../../outside", "files", "{outside}"])
def test_no_way_leads_out_of_the_root(tmp_path: Path, way: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root / "inside", outside, root / "files"):
        place.mkdir(parents=True)
    (outside / "adapter_model.safetensors").write_bytes(b"")
    (root / "link").symlink_to(outside)
    (root / "files" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    paths = RuntimePaths(root, anywhere=False)
    assert paths.resolve("inside") == (root / "inside").resolve()
    with pytest.raises(ApiError) as caught:
        paths.resolve(way.format(outside=outside))
    assert caught.value.status == 403


def test_without_a_root_nothing_is_loaded_unless_everything_may_be(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="--lora-root"):
        RuntimePaths(None, anywhere=False).resolve(str(tmp_path))
    assert RuntimePaths(None, anywhere=True).resolve(str(tmp_path)) == tmp_path.resolve()
    assert RuntimePaths(tmp_path / "root", anywhere=True).resolve(str(tmp_path)) == tmp_path.resolve()


def test_stages_of_requests_are_measured(http) -> None:
    before = _sums(http)
    _complete(http, "tiny")
    stages = {name: value - before.get(name, 0) for name, value in _sums(http).items()}
    assert stages["queue_count"] == stages["prefill_count"] == stages["decode_count"] == stages["inference_count"] == 1
    assert 0 <= stages["queue_sum"] < 5
    assert 0 < stages["prefill_sum"] < stages["inference_sum"]
    assert stages["inference_sum"] == pytest.approx(stages["prefill_sum"] + stages["decode_sum"])


def _sums(http: httpx.Client) -> dict[str, float]:
    """Stage and kind ("queue_sum") -> value."""
    found = {}
    for line in http.get("/metrics").text.splitlines():
        match = re.match(r"vllm:request_(queue|prefill|decode|inference)_time_seconds_(sum|count)\{.*\} (\S+)", line)
        if match:
            found[f"{match[1]}_{match[2]}"] = float(match[3])
    return found
