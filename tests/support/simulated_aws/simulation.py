"""Threads that run one at a time, on a clock that moves only while all of them wait.

A thread gives way wherever it calls out (a table, a queue, BLiP), sleeps, or waits for another
thread; nowhere else. So the order of what happens is an order of these calls, and the seed decides
it: by how long each call is under way. In the manual mode nothing happens until `step` names it.

A process is what can be killed. Its threads then stop where they are: at a call that has not begun
or has not come back. What a killed process had under way may still arrive, a moment later.
"""

import heapq
import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Any, Literal, Self

type Side = Literal["before", "after"]
# A process is killed where it is; or so that what it was about to do still arrives, a moment later.
type Crash = Literal["at once", "under way"]

# How long after its process's end a call may still arrive.
STRAGGLES_SECONDS = 20.0


class Killed(BaseException):
    """Ends a thread of a killed process. No `except Exception` sees it."""


class Process:
    """What one sandbox runs.

    Attributes:
        skew: how far its clock is ahead.
    """

    def __init__(self, name: str, skew: float = 0.0) -> None:
        self.name = name
        self.skew = skew
        self.dead = False
        self.tasks: dict[_Task, None] = {}  # as a set, in a fixed order


class _Worker:
    """A thread, used for one task after the other."""

    def __init__(self, run: Callable[["_Worker"], None]) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.task: _Task | None = None
        self.thread = threading.Thread(target=run, args=(self,), daemon=True)
        self.thread.start()


class _Task:
    """A thread of a process.

    Attributes:
        turns: how often it has run; distinguishes a late wake-up from the one it waits for.
    """

    def __init__(self, process: Process, function: Callable[[], Any], future: "SimFuture") -> None:
        self.process = process
        self.function = function
        self.future = future
        self.turns = 0
        self.worker: _Worker | None = None
        self.call: _Call | None = None


class _Call:
    """A call that is under way."""

    def __init__(self, point: str, effect: Callable[[], Any]) -> None:
        self.point = point
        self.effect = effect
        self.arrived = False
        self.lost = False
        self.value: Any = None
        self.error: Exception | None = None


# An event: a thread continues, if it is still at that turn, or a function is called.
type _Event = tuple[_Task, int] | Callable[[], None]


class SimFuture(Future[Any]):
    """A future for which one waits in the simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        super().__init__()
        self._simulation = simulation
        self.waiting: list[_Event] = []

    def result(self, timeout: float | None = None) -> Any:
        self._simulation.wait_for(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._simulation.wait_for(self)
        return super().exception(timeout)


class SimThreads(Executor):
    """The threads of whichever process submits to it."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation

    def submit[**P, R](
        self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]:
        process = self._simulation.process
        assert process is not None
        return self._simulation.spawn(process, lambda: function(*args, **kwargs))


class SimLock:
    """A lock under which a thread may call out: the others wait in the simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._held = False
        self._waiting: list[_Event] = []

    def __enter__(self) -> None:
        while self._held:
            self._simulation.wait_in(self._waiting)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        self._simulation.wake(self._waiting)


class Simulation:
    """The clock, the threads and what is under way.

    Attributes:
        now: the time, in epoch seconds.
        random: the only source of chance.
        manual: nothing happens until `step` names it.
        ready: in the manual mode, what can happen next.
        crash: asked at every call, before it begins and when it is back, whether the process shall
            be killed here. Given the process, the call's name and which of the two it is.
        straggles: whether what a killed process had under way may still arrive.
    """

    def __init__(self, seed: int, *, manual: bool = False, now: float = 1_800_000_000.0) -> None:
        self.random = random.Random(seed)
        self.now = now
        self.manual = manual
        self.ready: list[_Event] = []
        self.crash: Callable[[Process, str, Side], Crash | None] | None = None
        self.straggles = True
        self._timers: list[tuple[float, int, _Event]] = []
        self._numbers = count()
        self._until = now
        self._current: _Task | None = None
        self._tasks: dict[_Task, None] = {}
        self._main = threading.Lock()
        self._main.acquire()
        self._idle: list[_Worker] = []
        self._workers: list[_Worker] = []
        self._failure: BaseException | None = None
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End every thread."""
        self._closing = True
        while self._tasks:
            task = next(iter(self._tasks))
            task.process.dead = True
            self._hand_over(self._started(task))
            self._main.acquire()
        for worker in self._workers:
            worker.task = None
            worker.baton.release()
            worker.thread.join()

    @property
    def process(self) -> Process | None:
        """The process whose thread is running; None between two turns."""
        return self._current.process if self._current else None

    # --- what threads do --------------------------------------------------------------------------

    def call[T](
        self,
        point: str,
        effect: Callable[[], T],
        *,
        there: float = 0.0,
        back: float | Callable[[T], float] = 0.0,
    ) -> T:
        """Call out: the effect happens at one instant, and the answer comes after another while.

        Args:
            point: the call's name.
            effect: what happens; its value, or what it raises, is the answer.
            there: how long it takes until then.
            back: how long the answer takes; it may depend on the answer.
        """
        task = self._running()
        process = task.process
        call = task.call = _Call(point, effect)
        self._crash_point(process, call, "before")

        def arrive() -> None:
            if call.lost:
                return
            call.arrived = True
            try:
                call.value = effect()
            except Exception as error:  # noqa: BLE001 - the answer
                call.error = error
            takes = 0.0 if call.error is not None else back(call.value) if callable(back) else back
            if not process.dead:
                self._soon(takes, (task, task.turns))

        self._soon(there, arrive)
        self._pause(task)
        self._crash_point(process, call, "after")
        task.call = None
        if call.error is not None:
            raise call.error
        answer: T = call.value
        return answer

    def sleep(self, seconds: float) -> None:
        """Suspend the running thread."""
        task = self._running()
        if seconds > 0:
            self._at(self.now + seconds, (task, task.turns))
            self._pause(task)

    def wait_for(self, future: SimFuture) -> None:
        """Suspend the running thread until a future has its result."""
        if not future.done():
            self.wait_in(future.waiting)

    def wait_in(self, line: list[_Event]) -> None:
        """Suspend the running thread in a line until `wake` is called for it."""
        task = self._running()
        line.append((task, task.turns))
        self._pause(task)

    def wake(self, line: list[_Event]) -> None:
        """Resume every thread in a line."""
        for event in line:
            self._soon(0.0, event)
        line.clear()

    # --- what is done to them ---------------------------------------------------------------------

    def spawn(self, process: Process, function: Callable[[], Any]) -> SimFuture:
        """Start a thread in a process."""
        future = SimFuture(self)
        task = _Task(process, function, future)
        process.tasks[task] = None
        self._tasks[task] = None
        # Which of several starts first is chance.
        self._soon(self.random.random() * 0.0002, (task, task.turns))
        return future

    def kill(self, process: Process) -> None:
        """End a process where it is. Its calls under way arrive or not."""
        process.dead = True
        for task in list(process.tasks):
            call = task.call
            if call is not None and not (call.arrived or call.lost):
                if self.straggles and self.random.random() < 0.5:
                    self._hurry(call)
                call.lost = True
            if task is not self._current:
                self._soon(0.0, (task, task.turns))

    def _hurry(self, call: _Call) -> None:
        """Deliver what a killed process had under way a little later. No caller gets the answer."""

        def arrive() -> None:
            with suppress(Exception):
                call.effect()

        self._at(self.now + self.random.random() * STRAGGLES_SECONDS, arrive)

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Call a function at a time."""
        self._at(time, action)

    # --- driving it -------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Run the world for so long."""
        self._until = self.now + seconds
        if self.manual:
            while self.ready or (self._timers and self._timers[0][0] <= self._until):
                if self.ready:
                    self.step(self.random.randrange(len(self.ready)))
                else:
                    self.advance(self._timers[0][0] - self.now)
        else:
            self._give_way()
        self.now = max(self.now, self._until)

    def step(self, number: int) -> None:
        """In the manual mode: run one of the ready events."""
        event = self.ready.pop(number)
        if callable(event):
            event()
        elif event[0].turns == event[1]:
            self._hand_over(self._started(event[0]))
            self._main.acquire()
            self._raise_failure()

    def advance(self, seconds: float) -> None:
        """In the manual mode: move the clock. Threads that have slept long enough become ready."""
        until = self.now + max(0.0, seconds)
        while self._timers and self._timers[0][0] <= until:
            time, _, event = heapq.heappop(self._timers)
            self.now = max(self.now, time)
            if callable(event):
                event()
            elif event[0].turns == event[1]:
                self.ready.append(event)
        self.now = until

    def let_go(self) -> None:
        """Leave the manual mode: from here on events happen by themselves."""
        self.manual = False
        for event in self.ready:
            self._at(self.now, event)
        self.ready.clear()

    # --- the machinery ----------------------------------------------------------------------------

    def _running(self) -> _Task:
        task = self._current
        assert task is not None, "only a thread of the simulation can do that"
        if task.process.dead:
            raise Killed
        return task

    def _crash_point(self, process: Process, call: _Call, side: Side) -> None:
        crash = self.crash(process, call.point, side) if self.crash is not None else None
        if crash is not None:
            if crash == "under way":
                self._hurry(call)
            call.lost = True
            self.kill(process)
            raise Killed

    def _at(self, time: float, event: _Event) -> None:
        heapq.heappush(self._timers, (time, next(self._numbers), event))

    def _soon(self, seconds: float, event: _Event) -> None:
        if self.manual:
            self.ready.append(event)
        else:
            self._at(self.now + seconds, event)

    def _pause(self, task: _Task) -> None:
        """Yield until this task's turn comes; the yielding thread picks the next one."""
        following = self._next()
        if following is not task:
            self._hand_over(following)
            assert task.worker is not None
            task.worker.baton.acquire()
        self._current = task
        if task.process.dead:
            raise Killed

    def _give_way(self) -> None:
        following = self._next()
        if following is not None:
            self._hand_over(following)
            self._main.acquire()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _next(self) -> _Task | None:
        """Run due events until it is a thread's turn. `None` means the driving thread's turn."""
        self._current = None
        if self.manual or self._closing or self._failure is not None:
            return None
        timers = self._timers
        try:
            while timers and timers[0][0] <= self._until:
                time, _, event = heapq.heappop(timers)
                self.now = max(self.now, time)
                if callable(event):
                    event()
                elif event[0].turns == event[1]:
                    return self._started(event[0])
        except BaseException as error:  # noqa: BLE001 - it is raised in the driving thread
            self._failure = error
        return None

    def _started(self, task: _Task) -> _Task:
        task.turns += 1
        if task.worker is None:
            if self._idle:
                task.worker = self._idle.pop()
            else:
                task.worker = _Worker(self._work)
                self._workers.append(task.worker)
            task.worker.task = task
        return task

    def _hand_over(self, task: _Task | None) -> None:
        if task is None:
            self._main.release()
        else:
            assert task.worker is not None
            task.worker.baton.release()

    def _work(self, worker: _Worker) -> None:
        while True:
            worker.baton.acquire()
            task = worker.task
            if task is None:
                return
            self._current = task
            self._perform(task)
            del task.process.tasks[task], self._tasks[task]
            self._idle.append(worker)
            if task.future.done():
                self.wake(task.future.waiting)
            self._hand_over(self._next())

    def _perform(self, task: _Task) -> None:
        try:
            if task.process.dead:
                return
            task.future.set_result(task.function())
        except Killed:
            pass
        except Exception as error:  # noqa: BLE001 - as every executor does
            task.future.set_exception(error)
        except BaseException as error:  # noqa: BLE001 - a fault of the simulation itself
            self._failure = error
