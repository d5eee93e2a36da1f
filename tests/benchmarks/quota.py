"""Holds processes to a share of a processor, as Lambda holds a function to that of its MemorySize.

    python -m tests.benchmarks.quota SHARE

Takes process ids from standard input, one a line, and ends with it.

The kernel's own quota needs root and a cgroup. This one needs neither: a process that has used
its share of a period is stopped (SIGSTOP) until the next period begins. As with the kernel's quota,
time that was not used is lost, time used beyond the share is missing from the next periods, and
time is accounted at the scheduler's tick (4 ms at 250 Hz). If the governor wakes up late, a process
runs longer once, but no more in the long run.
"""

import math
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

# "At 1,769 MB, a function has the equivalent of one vCPU", and below it in proportion.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html
ONE_PROCESSOR_MB = 1769
# Lambda's, as observed: AWS does not document it. The kernel's default is 100 ms.
# https://github.com/pwrdrvr/lambda-dispatch/issues/246
PERIOD_SECONDS = 0.020
# Far below the tick.
SHORTEST_WAIT_SECONDS = 0.0005
# Only there can a process read the processor clock of another one.
SUPPORTED = sys.platform == "linux"


def share_of(memory_mb: int) -> float:
    """Return the share of a processor at this MemorySize: one thread at a time uses one at most."""
    return min(1.0, memory_mb / ONE_PROCESSOR_MB)


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process and its threads have used.

    Raises:
        ProcessLookupError: it has ended.
    """
    try:
        # The clock id is what clock_getcpuclockid(3) returns, which Python does not have.
        return time.clock_gettime(~pid << 3 | 2)
    except OSError as error:
        raise ProcessLookupError(pid) from error


@dataclass
class Budget:
    """The processor time that a process may still use in this period.

    Attributes:
        left: seconds; negative if more was used.
    """

    share: float
    left: float = 0

    def spend(self, seconds: float) -> None:
        self.left -= seconds

    def refill(self, periods: int) -> None:
        """Add the share of the periods that have begun since the last time."""
        each = self.share * PERIOD_SECONDS
        self.left = min(each, self.left + periods * each)


class _Governed:
    """A process under a quota."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid = pid
        self._budget = Budget(share)
        self._used = processor_seconds(pid)
        self._stopped = False

    def refill(self, periods: int) -> None:
        """Begin a period."""
        self._account()
        self._budget.refill(periods)
        if self._stopped and self._budget.left > 0:
            self.resume()

    def check(self) -> float:
        """Stop the process if it has used its share; return after how long to look again."""
        if self._stopped:
            return PERIOD_SECONDS
        self._account()
        if self._budget.left <= 0:
            os.kill(self._pid, signal.SIGSTOP)
            self._stopped = True
            return PERIOD_SECONDS
        return max(self._budget.left / 2, SHORTEST_WAIT_SECONDS)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)
        self._stopped = False

    def _account(self) -> None:
        used = processor_seconds(self._pid)
        self._budget.spend(used - self._used)
        self._used = used


def govern(share: float, pids: int) -> None:
    """Hold each process whose id arrives at the file descriptor to this share, until its end."""
    governed: list[_Governed] = []
    period_ends = time.monotonic() + PERIOD_SECONDS
    wait = PERIOD_SECONDS
    while True:
        if select.select([pids], [], [], wait)[0]:
            received = os.read(pids, 4096)
            if not received:
                break
            governed += [_Governed(int(pid), share) for pid in received.split()]
        late = time.monotonic() - period_ends
        begun = math.floor(late / PERIOD_SECONDS) + 1 if late >= 0 else 0
        period_ends += begun * PERIOD_SECONDS
        wait = max(0.0, period_ends - time.monotonic())
        for process in list(governed):
            try:
                if begun:
                    process.refill(begun)
                wait = min(wait, process.check())
            except ProcessLookupError:
                governed.remove(process)
    for process in governed:
        with suppress(ProcessLookupError):
            process.resume()


def main() -> None:
    with suppress(PermissionError):  # it also works at the priority of the others
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    print("ready", flush=True)
    govern(float(sys.argv[1]), sys.stdin.fileno())


if __name__ == "__main__":
    main()
