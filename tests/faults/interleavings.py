"""Any order of what can happen to a few notifications, as a state machine for hypothesis.

An event says what happens next: a batch is received, calls out begin or arrive or come back, a
sandbox dies, the clock moves, SQS shows a request again, BLiP reports, an operator redrives. The
invariants are checked after each; in the end every event happens, and every notification must
come to its end.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.faults.blip import NO_SET_UP, Accepted, Fate, Fault, HistorySettings, Kind
from tests.faults.breaks import BREAKS
from tests.faults.stories import WHERE
from tests.faults.world import Settings, World
from tests.support.builders import a_request
from tests.support.simulated_aws.simulation import Crash, Process, Side
from tests.support.simulated_aws.sqs import SourceMapping

PEOPLE = ["+5531999990001", "+5531999990002"]
NOTIFICATIONS = 3
# In seconds from when they are published.
VALID_FOR = [None, None, 15, 2000]
# How far BLiP's history is behind: less than the settle window, and more; in seconds.
LAGS = [*[(0, 300)] * 3, (10_000, 20_000)]
# More sandboxes at a time than this only repeat what two do to each other.
SANDBOXES = 3
# Permanent, a rate limit, an unreachable recipient, possibly sent, a capped one, one who opted out.
CODES = [131047, 131056, 131026, 86, 131049, 131050]
CALLS = [
    "ledger.",
    "identities.",
    "blip.messages",
    "dead-letters.",
    "requests.",
    "events.",
    "unpublished.",
]
FAULTS: list[Fault] = [
    "dropped",
    "swallowed",
    "gateway",
    "cut_off",
    "slow",
    "refused",
    "unavailable",
    "throttled",
    "unauthorized",
]
# A request must have its chance before SQS deletes it, and a wait takes four days and a half.
MAX_SECONDS = 8 * 86_400
START = 1_800_000_000

# One of what there is: a number modulo how much there is.
one = st.integers(0, 20)
steps = st.integers(0, 25)
# A seed for the order in which the calls under way continue.
order = st.integers(0, 1000)


def _event(name: str, **how: Any) -> st.SearchStrategy[tuple[str, Mapping[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(how))


# One rule for all of them: of several, hypothesis leaves out half in an average run.
EVENTS = st.one_of(
    _event(
        "publish",
        number=st.integers(0, NOTIFICATIONS - 1),
        valid_for=st.sampled_from(VALID_FOR),
        other=st.sampled_from([False, False, False, True]),
    ),
    _event("start", which=one, most=st.integers(1, 4), steps=steps, order=order),
    _event("start", which=one, most=st.integers(1, 4), steps=steps, order=order),
    _event("go_on", steps=steps, order=order),
    _event("go_on", steps=steps, order=order),
    _event("finish"),
    _event("wake", steps=steps, order=order),
    _event("wake", steps=st.just(25), order=order),
    _event("wait", seconds=st.sampled_from([1, 6, 35, 130, 1000, 4000, 90_000])),
    _event("stick", seconds=st.sampled_from([0.01, 1, 9, 16])),
    _event("kill", which=one),
    _event("kill_at", call=st.sampled_from(CALLS), where=st.sampled_from(sorted(WHERE))),
    _event("stick_at", call=st.sampled_from(CALLS), seconds=st.sampled_from([9, 16])),
    _event("stick_at", call=st.just("identities."), seconds=st.just(16)),
    _event("aws_fails", how=st.sampled_from(["repeated", "failed"]), steps=st.integers(1, 5)),
    _event(
        "bus_fails", share=st.sampled_from([0.5, 1.0]), seconds=st.sampled_from([0.01, 5, 60, 2000])
    ),
    _event(
        "happens_to_item",
        what=st.sampled_from(["refused", "too large", "spoilt", "restored", "forgotten"]),
        which=one,
    ),
    _event(
        "blip_fails",
        kind=st.sampled_from(["messages", "messages", "messages", "lookups", "history"]),
        fault=st.sampled_from(FAULTS),
    ),
    _event("cancel", number=st.integers(0, NOTIFICATIONS - 1)),
    _event("show_again", which=one),
    _event("redrive", which=one, with_attributes=st.booleans(), died=st.booleans()),
    _event(
        "report",
        which=one,
        event=st.sampled_from(["accepted", "dispatched", "received", "consumed"] + ["failed"] * 2),
        code=st.sampled_from(CODES),
        pushed=st.sampled_from([True, True, False]),
    ),
)


class Interleavings(RuleBasedStateMachine):
    """A few notifications, and what happens to them. An event that cannot be is none."""

    world: World | None = None
    broken: Sequence[str] = ()
    stuck_for = 0.0

    @property
    def _world(self) -> World:
        assert self.world is not None
        return self.world

    @initialize(
        seed=st.integers(0, 1000),
        known=st.sampled_from([True, True, False]),
        if_unknown=st.lists(
            st.sampled_from(["resend", "fail"]), min_size=NOTIFICATIONS, max_size=NOTIFICATIONS
        ),
        fates=st.lists(
            st.sampled_from([*[Fate()] * 8, Fate(refused=True), Fate(a_number=False)]),
            min_size=len(PEOPLE),
            max_size=len(PEOPLE),
        ),
        valid_for=st.sampled_from(VALID_FOR),
        lag=st.sampled_from(LAGS),
    )
    def deploy(
        self,
        *,
        seed: int,
        known: bool,
        if_unknown: list[str],
        fates: list[Fate],
        valid_for: float | None,
        lag: tuple[float, float],
    ) -> None:
        policy = {"max_attempts": 3, "breaker_wait_seconds": 60}
        history = HistorySettings(least_lag=lag[0], lag=lag[1])
        settings = Settings(manual=True, policy=policy, history=history, network=NO_SET_UP)
        self.world = World(seed, settings=settings)
        self.world.__enter__()
        self.if_unknown = if_unknown
        self.published: dict[int, str] = {}
        for person, fate in zip(PEOPLE, fates, strict=True):
            self.world.blip.fates[person] = fate
            if known and fate.a_number:
                self.world.know(person)
        self.publish(0, valid_for, other=False)

    @rule(event=EVENTS)
    def happens(self, event: tuple[str, Mapping[str, Any]]) -> None:
        name, how = event
        getattr(self, name)(**how)

    # --- from outside -----------------------------------------------------------------------------

    def publish(self, number: int, valid_for: float | None, *, other: bool) -> None:
        """Publish a request: the same one as before, if any, or other content under its id."""
        if number not in self.published:
            request = a_request(
                id=f"order-{number}",
                to=PEOPLE[number % len(PEOPLE)],
                if_unknown=self.if_unknown[number],
            )
            if valid_for is not None:
                end = datetime.fromtimestamp(self._world.simulation.now + valid_for, UTC)
                request["valid_until"] = end.isoformat()
            self.published[number] = json.dumps(request)
        body = self.published[number]
        if other:
            body = json.dumps(json.loads(body) | {"metadata": {"other": "content"}})
        self._world.publish(body)

    def cancel(self, number: int) -> None:
        """Cancel a notification, perhaps before it was published."""
        self._world.cancel(f"order-{number}")

    def redrive(self, which: int, *, with_attributes: bool, died: bool) -> None:
        """Redrive a dead letter; twice, if the operator's run died before it had deleted it."""
        letters = self._world.letters()
        if not letters:
            return
        letter = letters[which % len(letters)]
        put_back = self._world.redrive(letter, with_attributes=with_attributes)
        if died:
            self._world.requests.send(put_back.body, put_back.attributes, group=put_back.group)

    def happens_to_item(self, what: str, which: int) -> None:
        """Change an item of the ledger in a way that does not concern sending."""
        world, name = self._world, f"order-{which % NOTIFICATIONS}"
        match what:
            case "refused":  # EventBridge takes no event of it from here on
                world.faults.bus.never.add(name)
            case "too large":
                world.faults.bus.too_large.add(name)
            case "spoilt":
                world.poison()
            case "restored":
                keys = sorted(world.tables["ledger"].items.keys() - world.invariants.poison.keys())
                if keys:
                    world.restore(keys[which % len(keys)])
            case _:
                world.forget({"id": name})

    def show_again(self, which: int) -> None:
        """SQS shows a message again, although a sandbox may have it."""
        messages = self._world.requests.waiting() + self._world.receipts.waiting()
        if messages:
            message = messages[which % len(messages)]
            for queue in (self._world.requests, self._world.receipts):
                if queue.messages.get(message.number) is message:
                    queue.show_again(message)

    # --- the functions ----------------------------------------------------------------------------

    def start(self, which: int, most: int, steps: int, order: int) -> None:
        """Start a sandbox with a batch of requests, or of receipts."""
        startable = [
            mapping
            for mapping in self._mappings
            if len(mapping.busy) < SANDBOXES and mapping.startable()
        ]
        if startable:
            startable[which % len(startable)].poll(most)
            self.go_on(steps, order)

    def wake(self, steps: int, order: int) -> None:
        """Start the function that wakes what has waited."""
        self._world.wake()
        self.go_on(steps, order)

    def go_on(self, steps: int, order: int) -> None:
        """Make calls begin, arrive or return, one by one."""
        simulation, chance = self._world.simulation, Random(order)
        for _ in range(steps):
            if not simulation.ready:
                break
            simulation.step(chance.randrange(len(simulation.ready)) if order else 0)
            simulation.advance(self.stuck_for)
            self.stuck_for = 0.0

    def finish(self) -> None:
        """All that is under way comes to its end, in any order."""
        self._world.run(1)

    def wait(self, seconds: float) -> None:
        """Advance the clock; calls under way continue."""
        if self._world.simulation.now + seconds < START + MAX_SECONDS:
            self._world.run(seconds)

    def stick(self, seconds: float) -> None:
        """Whatever is under way takes that much longer; too long, and its sandbox is stopped."""
        self._world.simulation.advance(seconds)

    @property
    def _mappings(self) -> list[SourceMapping[Any]]:
        return [self._world.sending, self._world.recording, self._world.publishing]

    # --- what goes wrong --------------------------------------------------------------------------

    def kill(self, which: int) -> None:
        """Kill a sandbox where it is."""
        busy = [(mapping, process) for mapping in self._mappings for process in mapping.busy]
        if busy:
            mapping, process = busy[which % len(busy)]
            mapping.kill(process)

    def kill_at(self, call: str, where: str) -> None:
        """Kill the next sandbox that makes this call, before, during or after it."""
        at, crash = WHERE[where]

        def kill() -> Crash:
            return crash

        self._next_time(call, at, kill)

    def stick_at(self, call: str, seconds: float) -> None:
        """Delay the next call of this name by so much."""

        def stick() -> None:
            self.stuck_for = seconds

        self._next_time(call, "before", stick)

    def _next_time(self, call: str, at: Side, do: Callable[[], Crash | None]) -> None:
        def look(_: Process, point: str, side: Side) -> Crash | None:
            if side != at or not point.startswith(call):
                return None
            self._world.simulation.crash = None
            return do()

        self._world.simulation.crash = look

    def aws_fails(self, how: str, steps: int) -> None:
        """Lose answers of AWS for a while: boto3 asks again, or gives up."""
        faults = self._world.faults.aws
        setattr(faults, how, 1.0)
        self.go_on(steps, 0)
        setattr(faults, how, 0.0)

    def bus_fails(self, share: float, seconds: float) -> None:
        """Make EventBridge throttle some events for a while, or not answer at all."""
        faults, now = self._world.faults.bus, self._world.simulation.now
        if share < 1:
            faults.throttled = [(now, now + seconds, share)]
        else:
            faults.away = [(now, now + seconds)]

    def blip_fails(self, kind: Kind, fault: Fault) -> None:
        """Make the next call of this kind fail like this."""
        if not self._world.blip.next_faults[kind]:
            self._world.blip.next_faults[kind].append(fault)

    # --- what becomes of messages -----------------------------------------------------------------

    def report(self, which: int, event: str, code: int, *, pushed: bool) -> None:
        """BLiP reports, in any order, as often as it likes; or only keeps it in its history."""
        messages: list[Accepted] = [
            message for messages in self._world.blip.sent.values() for message in messages
        ]
        if messages:
            self._world.blip.report(
                messages[which % len(messages)],
                event,
                code if event == "failed" else None,
                pushed=pushed,
            )

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        self.broken = self._world.invariants.so_far
        assert not self.broken, self.broken

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if not self.broken:
                self.world.simulation.crash = None
                self.world.let_go()
                self.world.settle(at_most=6 * 86_400)
                self.broken = self.world.invariants.broken()
                assert not self.broken, self.broken
        finally:
            self.world.__exit__(None, None, None)


# hypothesis remembers all that it has tried: so many at a time fit into memory.
ROUND = 500


def run(examples: int, *, steps: int = 50, anew: bool = True, shrink: bool = True) -> None:
    """Run so many interleavings.

    Args:
        examples: how many.
        steps: how many events each has at most.
        anew: other ones each time.
        shrink: look for the shortest one that breaks something.

    Raises:
        AssertionError: one breaks something; the message shows it.
    """
    for start in range(0, examples, ROUND):
        run_state_machine_as_test(
            Interleavings,
            settings=hypothesis_settings(
                max_examples=min(ROUND, examples - start),
                stateful_step_count=steps,
                derandomize=not anew,
                database=None,
                deadline=None,
                phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
                report_multiple_bugs=False,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )


def overlooked(examples: int) -> list[str]:
    """Break the code in each way. Return the breaks that so many interleavings do not find."""
    missed = []
    for name, broken in BREAKS.items():
        with broken.made(), suppress(AssertionError):
            run(examples, shrink=False)
            missed.append(name)
    return missed
