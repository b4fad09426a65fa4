"""A gateway process that is killed loses no charge: those that ended and those that it served."""

import fcntl
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace
from tests.gateway.usage_records import usage_record

from descant_gateway.ledger import journal as ledger_journal
from descant_gateway.ledger.journal import DeadJournals, LedgerJournal, recover
from descant_gateway.ledger.spool import LedgerSpool
from descant_gateway.usage.record import Outcome, UsageRecord, decode_line, encode_line

BEGUN = usage_record(
    charge_id=UUID(int=1),
    created_at=datetime(2026, 11, 21, tzinfo=UTC),
    team_id=uuid4(),
    backend="",
    outcome=Outcome.INTERRUPTED,
    status=0,
    prompt_tokens=0,
    cached_tokens=0,
    completion_tokens=0,
    estimated=True,
    duration_ms=0,
    tags={"app": "search"},
)

KILLED = """
import sys, time
from pathlib import Path
from uuid import UUID
from msgspec.structs import replace
from descant_gateway.usage.record import Outcome, decode_line, encode_line
from descant_gateway.ledger.journal import LedgerJournal

begun = decode_line(sys.argv[2].encode())
journal = LedgerJournal(Path(sys.argv[1]))
journal.open()
for number in range(5000):
    record = replace(begun, charge_id=UUID(int=number))
    journal.begin(record.charge_id, encode_line(record))
    if number % 50:
        ended = replace(record, outcome=Outcome.COMPLETED, completion_tokens=number)
        journal.end(record.charge_id, encode_line(ended))
    journal.seal_if_large(number)
print("served", flush=True)
time.sleep(60)
"""


def charge(number: int, **fields: object) -> UsageRecord:
    return replace(BEGUN, charge_id=UUID(int=number), **fields)


def opened(folder: Path) -> LedgerJournal:
    journal = LedgerJournal(folder)
    journal.open()
    assert journal.is_written
    return journal


def begin(journal: LedgerJournal, number: int) -> None:
    journal.begin(UUID(int=number), encode_line(charge(number)))


def end(journal: LedgerJournal, number: int) -> None:
    journal.end(UUID(int=number), encode_line(charge(number, outcome=Outcome.COMPLETED)))


def found(folder: Path) -> dict[int, Outcome]:
    """What the next process finds."""
    spool = LedgerSpool(folder)
    recover(folder, spool)
    records = [decode_line(line) for segment in spool.segments() for line in spool.read(segment)[0]]
    assert len({record.charge_id for record in records}) == len(records)
    return {record.charge_id.int: record.outcome for record in records}


def test_a_killed_process_leaves_every_charge_exactly_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), encode_line(BEGUN).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"served\n"
        assert found(tmp_path) == {}, "it lives"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    charges = found(tmp_path)
    assert len(charges) == 5000
    assert {number for number, outcome in charges.items() if outcome is Outcome.INTERRUPTED} == set(range(0, 5000, 50))
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"], "the journals are in the spool, and gone"


def test_what_is_stored_is_forgotten_and_a_clean_end_leaves_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    begin(journal, 1)
    end(journal, 1)
    begin(journal, 2)
    journal.stored(1, is_all=True)
    end(journal, 2)
    journal.stored(2, is_all=True)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0
    journal.close(is_all_stored=True)
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_file_goes_when_its_records_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_journal, "MAX_BYTES", 1000)
    journal = opened(tmp_path)
    begin(journal, 1)
    for number in range(2, 8):
        begin(journal, number)
        end(journal, number)
    journal.seal_if_large(6)
    assert len(list(tmp_path.glob("*.journal"))) == 2
    journal.stored(5, is_all=False)
    assert len(list(tmp_path.glob("*.journal"))) == 2
    journal.stored(6, is_all=False)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    journal.close(is_all_stored=False)
    assert found(tmp_path) == {1: Outcome.INTERRUPTED}, "what runs on is in the new file"


def test_a_torn_last_line_costs_itself_only(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for number in (1, 2):
        begin(journal, number)
        end(journal, number)
    journal.close(is_all_stored=False)
    (file,) = tmp_path.glob("*.journal")
    file.write_bytes(file.read_bytes()[:-20])
    for dead in DeadJournals.find(tmp_path):
        assert dead.records()[1] == 1
        dead.close()
    assert found(tmp_path) == {1: Outcome.COMPLETED, 2: Outcome.INTERRUPTED}


def test_a_full_disk_leaves_whole_lines_and_is_told(tmp_path: Path) -> None:
    """A file may grow to 2,500 bytes: the write beyond it is cut short, as on a disk that is full."""
    journal = opened(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        for number in range(1, 20):
            begin(journal, number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not journal.is_written
    begin(journal, 20)
    assert journal.is_written, "there is space again"
    journal.close(is_all_stored=False)
    (file,) = tmp_path.glob("*.journal")
    numbers = [decode_line(line).charge_id.int for line in file.read_bytes().splitlines()]
    assert numbers[-1] == 20
    assert numbers[:-1] == list(range(1, len(numbers)))
    assert 2 < len(numbers) < 19


def test_a_file_that_cannot_be_removed_is_removed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_journal, "MAX_BYTES", 100)
    journal = opened(tmp_path)
    begin(journal, 1)
    end(journal, 1)
    journal.seal_if_large(1)
    sealed = min(tmp_path.glob("*.journal"))
    sealed.unlink()
    sealed.mkdir()  # which is not removed like a file
    journal.stored(1, is_all=True)
    assert not journal.is_written, "it was told"
    sealed.rmdir()
    sealed.touch()
    begin(journal, 2)
    assert journal.is_written
    journal.stored(1, is_all=False)
    assert not sealed.exists()
    (file,) = tmp_path.glob("*.journal")
    file.unlink()
    file.mkdir()
    journal.close(is_all_stored=True)


@pytest.mark.parametrize("is_removed", [False, True])
def test_another_process_that_locks_the_new_file_first_takes_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    """As one that looks for journals of dead ones between the making of the file and the locking of it."""
    others: list[DeadJournals] = []

    def race(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        others.extend(DeadJournals.find(tmp_path))
        if is_removed:
            others[0].remove()
            others[0].close()
        fcntl.flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", race)
    journal = opened(tmp_path)
    assert len(others) == 1
    if not is_removed:
        others[0].remove()
        others[0].close()
    begin(journal, 1)
    assert found(tmp_path) == {}, "it lives"
    journal.close(is_all_stored=False)
    assert found(tmp_path) == {1: Outcome.INTERRUPTED}


def test_without_a_folder_it_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = LedgerJournal(tmp_path / "file")
    journal.open()
    begin(journal, 1)
    end(journal, 1)
    journal.seal_if_large(1)
    journal.close(is_all_stored=True)
    assert not journal.is_written
