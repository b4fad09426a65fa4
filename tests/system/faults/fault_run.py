"""One fault on a plant under load: before, meanwhile, afterwards; then everything that must hold is looked up."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field

import redis.asyncio
from tests.system.faults.faults import Fault
from tests.system.faults.load import INFERENCE, KINDS, OK, Answer, Load, Tenant, labels, running_load
from tests.system.faults.plant import LEASE_S, Plant

BOOKED_WITHIN_S = 15.0
BEFORE_S = 0.5
QUIET_S = 0.8
"""Without a wrong answer: over."""


@dataclass
class Report:
    fault: str
    outage_s: float
    num_requests: int = 0
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    """From the strike until everybody was served again, by class of request."""
    slowest_ms: dict[str, int] = field(default_factory=dict)
    """The same time: the 99th percentile of the answers, by class."""
    recovered_s: float = 0.0
    """From the end of the fault until the last answer that showed it."""
    num_ledger_rows: int = 0
    lost_rows: int = 0
    """Requests whose end the gateway lived to see, without a row."""
    tokens_off: int = 0
    """Complete replies whose row has other tokens than the reply said."""
    wrong_401: int = 0
    restarts: int = 0
    """Of processes that the fault did not kill."""
    open_at_the_kill: int = 0
    """Requests that the engines began for a gateway that died; no row says what they came to."""
    violations: list[str] = field(default_factory=list)


async def run_fault(
    plant: Plant, fault: Fault, tenants: dict[str, Tenant], *, outage_s: float, num_clients: int = 12
) -> Report:
    report = Report(fault.name, outage_s)
    starts = Counter({process.url: process.num_starts for process in (*plant.gateways, *plant.engines)})
    async with running_load(plant, tenants, num_clients) as load:
        await asyncio.sleep(BEFORE_S)
        struck = time.monotonic()
        await fault.strike(plant)
        await asyncio.sleep(outage_s)
        await fault.heal(plant)
        healed = time.monotonic()
        await _all_are_served(load, healed, report)
    _look_at_answers(load, fault, struck, healed, report)
    await _look_at_ledger(plant, load, fault, report)
    if fault.is_exact:
        await _look_at_counters(plant, load, report)
    for process in (*plant.gateways, *plant.engines):
        report.restarts += process.num_starts - starts[process.url] - (process is _victim(plant, fault))
        if not process.is_alive:
            report.violations.append(f"{process.argv[1:3]} has ended")
    if report.restarts:
        report.violations.append("something had to be started again")
    return report


def _victim(plant: Plant, fault: Fault) -> object:
    return {"gateway killed": plant.gateways[-1], "engine killed": plant.engines[-1]}.get(fault.name)


async def _all_are_served(load: Load, healed: float, report: Report) -> None:
    """Until every class has had only right answers for a moment, from requests that began after the fault's end."""
    patience_s = 20.0
    while time.monotonic() < healed + patience_s:
        await asyncio.sleep(0.1)
        since = time.monotonic() - QUIET_S
        recent = load.between(max(healed, since), time.monotonic())
        if since >= healed and all(_is_served(kind, recent) for kind in KINDS):
            return
    report.violations.append(f"not everybody is served again: {labels(load.between(healed + patience_s - 2, 1e12))}")


def _is_served(kind: str, recent: list[Answer]) -> bool:
    mine = [answer for answer in recent if answer.kind == kind]
    return bool(mine) and all(answer.is_right for answer in mine)


def _look_at_answers(load: Load, fault: Fault, struck: float, healed: float, report: Report) -> None:
    report.num_requests = len(load.answers)
    before = [answer for answer in load.answers if answer.ended < struck and not answer.is_right]
    report.violations += [f"before the fault: {answer}" for answer in before]
    since = load.between(struck, float("inf"))
    report.seen = labels(since)
    report.slowest_ms = {kind: _p99_ms([answer for answer in since if answer.kind == kind]) for kind in KINDS}
    late = [answer.ended for answer in since if not answer.is_right]
    report.recovered_s = round(max(0.0, max(late, default=0.0) - healed), 2)
    wrong = [each for each in load.answers if each.kind != "wrong key" and each.label.startswith("401")]
    report.wrong_401 = len(wrong)
    for answer in since:
        if not answer.is_right and answer.label not in fault.may_see.get(answer.kind, set()):
            report.violations.append(f"{answer.kind} saw {answer.label}")
    for kind, needed in fault.must_see.items():
        if not needed & set(report.seen[kind]):
            report.violations.append(f"{kind} saw nothing of it")


async def _look_at_ledger(plant: Plant, load: Load, fault: Fault, report: Report) -> None:
    """A row for each complete reply, with its tokens; one for each call that an engine began; none twice."""
    complete = {each.request_id: each for each in load.answers if each.kind in INFERENCE and each.label == OK}
    deadline = time.monotonic() + BOOKED_WITHIN_S
    while True:
        rows = await plant.rows("charge_id, request_id, team_id, completion_tokens")
        teams = {tenant.team_id for tenant in load.tenants.values()}
        mine = {row["request_id"]: row for row in rows if row["team_id"] in teams}
        charges = [row["charge_id"].hex for row in rows]
        missing = complete.keys() - mine.keys()
        unbooked = _begun(plant) - set(charges)
        if (not missing and not unbooked) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    report.num_ledger_rows = len(mine)
    report.lost_rows = len(missing)
    report.tokens_off = sum(mine[name]["completion_tokens"] != complete[name].tokens for name in complete.keys() & mine)
    if fault.lost_with_process:
        report.open_at_the_kill = len(unbooked)
        plant.written_off |= unbooked
    elif unbooked:
        report.lost_rows = max(report.lost_rows, len(unbooked))
    if report.lost_rows or report.tokens_off:
        report.violations.append(f"{report.lost_rows} rows lost, {report.tokens_off} with other tokens")
    if len(charges) != len(set(charges)):
        report.violations.append("a charge was written twice")


def _begun(plant: Plant) -> set[str]:
    lines = [line for number in range(len(plant.engines)) for line in plant.journal(number).read_text().splitlines()]
    return {json.loads(line)[0] for line in lines} - plant.written_off


async def _look_at_counters(plant: Plant, load: Load, report: Report) -> None:
    """Nothing is held any more, and what was settled is what the ledger holds."""
    tenant = load.tenants["budget"]
    rows = await plant.rows("team_id, prompt_tokens + completion_tokens AS tokens")
    expected = sum(row["tokens"] for row in rows if row["team_id"] == tenant.team_id)
    async with redis.asyncio.Redis.from_url(plant.valkey.url) as valkey:
        deadline = time.monotonic() + 3 * LEASE_S
        while True:
            found = await valkey.hgetall(await _counter(valkey, tenant.team_id.hex))
            settled, reserved = int(found.get(b"settled", 0)), int(found.get(b"reserved", 0))
            if (settled, reserved) == (expected, 0):
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
    report.violations.append(f"settled {settled}, in the ledger {expected}; still reserved {reserved}")


async def _counter(valkey: "redis.asyncio.Redis", team: str) -> bytes:
    async for key in valkey.scan_iter(f"descant:*:tokens_per_day:{team}:*"):
        return bytes(key)
    return b"none"


def _p99_ms(answers: list[Answer]) -> int:
    seconds = sorted(answer.ended - answer.started for answer in answers)
    return round(1000 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]) if seconds else 0
