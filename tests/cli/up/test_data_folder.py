"""The data folder: one owner at a time, secrets that stay and stay secret."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from descant_cli.up import data_folder
from descant_cli.up.data_folder import open_data_folder
from descant_cli.up.problem import UpProblem


def test_secrets_are_made_once_and_kept(tmp_path: Path) -> None:
    with open_data_folder(tmp_path / "data") as folder:
        first = folder.secrets()
        kept = folder.keep_team_key("dsc_key")
    with open_data_folder(tmp_path / "data") as folder:
        assert folder.secrets() == kept
    assert (kept.key_pepper, kept.admin_key, kept.team_key) == (first.key_pepper, first.admin_key, "dsc_key")
    assert first.key_pepper != first.admin_key
    assert len(first.key_pepper) == 64


def test_secrets_can_be_read_by_the_owner_alone(tmp_path: Path) -> None:
    with open_data_folder(tmp_path) as folder:
        folder.secrets()
        assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
        folder.keep_team_key("dsc_key")
        assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"surprise": 1}'])
def test_damaged_secrets_are_refused_and_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "secrets.json").write_text(text)
    with open_data_folder(tmp_path) as folder, pytest.raises(UpProblem, match=r"secrets.json is damaged"):
        folder.secrets()
    assert (tmp_path / "secrets.json").read_text() == text


def test_second_owner_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with open_data_folder(tmp_path):
        with pytest.raises(UpProblem, match=rf"already up on .* \(process {os.getpid()}\)"), open_data_folder(tmp_path):
            pass
        # The refused one must not have wiped the owner's note.
        with pytest.raises(UpProblem, match=rf"process {os.getpid()}"), open_data_folder(tmp_path):
            pass
    with open_data_folder(tmp_path):
        pass


def test_lock_goes_with_its_process_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom descant_cli.up.data_folder import open_data_folder\n"
        "with open_data_folder(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=30, check=False)
    with open_data_folder(tmp_path):
        pass


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UpProblem, match=r"file/data cannot be written .*--data-dir"),
        open_data_folder(tmp_path / "file" / "data"),
    ):
        pass


def test_full_disk_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(UpProblem, match=r"Only \d+ MB are free .* \d+ MB are needed"), open_data_folder(tmp_path):
        pass


def test_sockets_of_a_long_path_are_elsewhere_and_cleaned_up(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 30)
    with open_data_folder(deep) as folder:
        assert len(os.fsencode(folder.sockets)) < data_folder.MAX_SOCKET_PATH
        assert folder.sockets.is_dir()
    assert not folder.sockets.exists()


def test_sockets_of_a_short_path_are_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_folder, "MAX_SOCKET_PATH", 4096)
    with open_data_folder(tmp_path) as folder:
        assert folder.sockets == tmp_path / "run"
