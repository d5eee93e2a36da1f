"""The share of a processor that the benchmarks give a function."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import IO

import pytest

from tests.benchmarks.quota import PERIOD_SECONDS, SUPPORTED, Budget, processor_seconds, share_of
from tests.local.machine import ROOT, wait_until

SHARE = share_of(512)
BUSY = "while True: pass"
needs_processor_clocks = pytest.mark.skipif(
    not SUPPORTED, reason="only Linux shows the processor clock of another process"
)


def test_share_grows_with_the_memory_up_to_one_processor() -> None:
    assert share_of(512) == 512 / 1769
    assert share_of(1769) == 1
    assert share_of(3008) == 1


@pytest.mark.parametrize("late", [0, 5, 50, 500])
def test_busy_process_gets_its_share_and_no_more_in_the_long_run(late: int) -> None:
    """Milliseconds are simulated; once in a second the governor wakes up so many too late."""
    budget = Budget(SHARE)
    used, begun, slept_until = 0.0, 0, 0
    running = False
    for now in range(60_000):
        if now % 1000 == 0:
            slept_until = now + late
        if now >= slept_until:
            periods = now // 20 - begun
            begun += periods
            if periods:
                budget.refill(periods)
            running = budget.left > 0
        if running:
            used += 0.001
            budget.spend(0.001)

    # At the end one overrun may not be paid back.
    assert used <= SHARE * 60 + late / 1000 + 0.001
    # Periods that went by in a pause longer than a period are lost to the process.
    assert used >= (SHARE - late / 1000) * 60 - SHARE * PERIOD_SECONDS


def test_unused_quota_is_lost() -> None:
    budget = Budget(SHARE)

    budget.refill(100)

    assert budget.left == SHARE * PERIOD_SECONDS


def test_overused_quota_is_deducted_afterwards() -> None:
    budget = Budget(SHARE)
    budget.refill(1)

    budget.spend(4 * SHARE * PERIOD_SECONDS)
    budget.refill(2)

    assert budget.left == pytest.approx(-SHARE * PERIOD_SECONDS)


@contextmanager
def quota(share: float) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Run a process that does nothing but use the processor, under a quota."""
    governor = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "tests.benchmarks.quota", str(share)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    busy = subprocess.Popen([sys.executable, "-c", BUSY], text=True)  # noqa: S603
    assert governor.stdin is not None
    try:
        print(busy.pid, file=governor.stdin, flush=True)
        yield busy, governor.stdin
    finally:
        governor.stdin.close()
        governor.wait()
        busy.kill()
        busy.wait()


def state(process: subprocess.Popen[str]) -> str:
    status = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii")
    return status.rpartition(")")[2].split()[0]


@needs_processor_clocks
def test_busy_process_is_held_to_its_share() -> None:
    with quota(SHARE) as (busy, _):
        begun, used_before = monotonic(), processor_seconds(busy.pid)

        def held() -> bool:
            used = processor_seconds(busy.pid) - used_before
            return used > 0.1 and used / (monotonic() - begun) <= 1.05 * SHARE

        wait_until(held, "the quota")


@needs_processor_clocks
def test_process_continues_when_its_quota_ends() -> None:
    with quota(0.01) as (busy, pids):
        wait_until(lambda: state(busy) == "T", "the process to be stopped")

        pids.close()

        used = processor_seconds(busy.pid)
        wait_until(lambda: processor_seconds(busy.pid) > used + 0.1, "the process to go on")
