"""Starting, watching and stopping, with small real processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from descant_cli.up.data_folder import DataFolder, open_data_folder
from descant_cli.up.problem import StopRequested, UpProblem
from descant_cli.up.process import Part
from descant_cli.up.stack import Stack
from descant_cli.up.stop_signals import StopSignals, catch_stop_signals

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
PARENT = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\n"
    "print('child', child.pid, flush=True)\ntime.sleep(60)"
)
NOTE_STOP = (
    "import signal, sys, time\n"
    "def stop(*_):\n    open(sys.argv[1], 'a').write(sys.argv[2] + ' ')\n    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\nprint('ready', flush=True)\ntime.sleep(60)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    with open_data_folder(tmp_path) as opened:
        yield opened


def part(folder: DataFolder, name: str, code: str, *arguments: str, grace_s: float = 5.0) -> Part:
    log = folder.logs / f"{name}.log"
    return Part(
        name=name,
        argv=(sys.executable, "-c", code, *arguments),
        is_ready=lambda: log.exists() and log.read_text() != "",
        stop_grace_s=grace_s,
    )


def pids_below(process: psutil.Process) -> set[int]:
    return {child.pid for child in process.children(recursive=True)}


def test_parts_stop_newest_first(folder: DataFolder) -> None:
    notes = folder.path / "notes"
    with Stack(folder, StopSignals()) as stack:
        for name in ("first", "second", "third"):
            each = part(folder, name, NOTE_STOP, str(notes), name)
            stack.start(each)
            stack.wait_ready(each, 20)
    assert notes.read_text().split() == ["third", "second", "first"]


def test_part_that_ends_early_is_reported_with_its_last_lines_and_takes_the_others_down(folder: DataFolder) -> None:
    before = pids_below(psutil.Process())
    code = "import sys; print('cannot read weights'); sys.exit(3)"
    with pytest.raises(UpProblem, match=r"broken ended by itself \(exit code 3\)") as problem:
        with Stack(folder, StopSignals()) as stack:
            stack.start(part(folder, "sleeper", SLEEPER))
            stack.start(part(folder, "broken", code))
            stack.watch()
    assert "cannot read weights" in problem.value.log_tail
    assert pids_below(psutil.Process()) == before


def test_waiting_for_one_part_notices_that_another_died(folder: DataFolder) -> None:
    with pytest.raises(UpProblem, match=r"dead ended by itself \(signal 9\)"), Stack(folder, StopSignals()) as stack:
        stack.start(part(folder, "dead", "import os; os.kill(os.getpid(), 9)"))
        never = Part(name="never", argv=(sys.executable, "-c", SLEEPER), is_ready=lambda: False)
        stack.start(never)
        stack.wait_ready(never, 20)


def test_part_that_is_never_ready_names_its_log(folder: DataFolder) -> None:
    with pytest.raises(UpProblem, match=r"never is not ready after 0 s. See .*never.log"):
        with Stack(folder, StopSignals()) as stack:
            never = Part(name="never", argv=(sys.executable, "-c", SLEEPER), is_ready=lambda: False)
            stack.start(never)
            stack.wait_ready(never, 0.2)


def test_program_that_does_not_exist_is_a_problem(folder: DataFolder) -> None:
    with pytest.raises(UpProblem, match=r"ghost cannot be started"), Stack(folder, StopSignals()) as stack:
        stack.start(Part(name="ghost", argv=("/nowhere/ghost",), is_ready=lambda: True))


def test_stubborn_part_and_its_children_are_killed_after_the_grace(folder: DataFolder) -> None:
    with Stack(folder, StopSignals()) as stack:
        stubborn = part(folder, "parent", PARENT, grace_s=0.3)
        stack.start(stubborn)
        stack.wait_ready(stubborn, 20)
        child = int((folder.logs / "parent.log").read_text().split()[1])
        assert psutil.pid_exists(child)
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=5)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_run_once_passes_the_environment_and_reports_failure(folder: DataFolder) -> None:
    code = "import os, sys; print(os.environ['WORD']); sys.exit(int(os.environ['CODE']))"
    with Stack(folder, StopSignals()) as stack:
        stack.run_once("once", [sys.executable, "-c", code], {"WORD": "hello", "CODE": "0"})
        assert (folder.logs / "once.log").read_text() == "hello\n"
        with pytest.raises(UpProblem, match=r"once ended by itself \(exit code 4\)"):
            stack.run_once("once", [sys.executable, "-c", code], {"WORD": "hello", "CODE": "4"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_ends_the_watch(folder: DataFolder, number: signal.Signals) -> None:
    before = pids_below(psutil.Process())
    with catch_stop_signals() as signals:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(StopRequested), Stack(folder, signals) as stack:
            stack.start(part(folder, "sleeper", SLEEPER))
            stack.watch()
        assert not signals.is_impatient()
        timer.join()
    assert pids_below(psutil.Process()) == before


def test_second_stop_signal_ends_the_waiting(folder: DataFolder) -> None:
    started = time.monotonic()
    with catch_stop_signals() as signals:
        timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in (0.1, 0.6)]
        for timer in timers:
            timer.start()
        with pytest.raises(StopRequested), Stack(folder, signals) as stack:
            stubborn = part(folder, "stubborn", STUBBORN, grace_s=60.0)
            stack.start(stubborn)
            stack.watch()
        for timer in timers:
            timer.join()
    assert time.monotonic() - started < 20


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux kernel tells children of a parent's death")
def test_parts_die_with_a_killed_stack(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from descant_cli.up.data_folder import open_data_folder\nfrom descant_cli.up.process import Part\n"
        "from descant_cli.up.stack import Stack\nfrom descant_cli.up.stop_signals import StopSignals\n"
        "with open_data_folder(Path(sys.argv[1])) as folder, Stack(folder, StopSignals()) as stack:\n"
        f"    part = Part(name='sleeper', argv=(sys.executable, '-c', {SLEEPER!r}), is_ready=lambda: True)\n"
        "    stack.start(part)\n"
        "    print(stack._processes[0]._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(result.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(result.stdout))
