"""Stories of one notification, short enough to be repeated with a crash at each call."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from notifier.domain.notification import ledger_key
from tests.faults.blip import Fate, HistorySettings
from tests.faults.world import Settings, World
from tests.support.builders import PHONE, a_request
from tests.support.simulated_aws.dynamodb import AwsError
from tests.support.simulated_aws.simulation import Crash, Process, Side

# Every story is about this one.
an_order = partial(a_request, id="order-1")


def _known(world: World) -> None:
    world.know(PHONE)
    world.publish(an_order())


def _new(world: World) -> None:
    world.publish(an_order())


def _no_phone_number(world: World) -> None:
    world.blip.fates[PHONE] = Fate(a_number=False)
    world.publish(an_order())


def _refused(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(refused=True)
    world.publish(an_order())


def _expired(world: World) -> None:
    past = datetime.fromtimestamp(world.simulation.now - 60, UTC).isoformat()
    world.publish(an_order(valid_until=past))


def _malformed(world: World) -> None:
    world.publish("no JSON")


def _conflict(world: World) -> None:
    world.know(PHONE)
    world.publish(an_order())
    world.publish_at(world.simulation.now + 5, an_order(metadata={"other": "content"}))


def _twice(world: World) -> None:
    world.know(PHONE)
    world.publish(an_order())
    world.publish(an_order())


def _retried(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].extend(["unavailable", "refused"])
    world.publish(an_order())


def _throttled(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].append("throttled")
    world.publish(an_order())


def _misconfigured(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].extend(["unauthorized", "unauthorized"])
    world.publish(an_order())


def _swallowed(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].append("swallowed")
    world.publish(an_order())


def _dropped(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].append("dropped")
    world.publish(an_order())


def _dropped_among_others(world: World) -> None:
    _dropped(world)
    for number, seconds in enumerate((60, 400)):
        another = an_order(id=f"other-{number}", to=f"+553199999777{number}")
        world.publish_at(world.simulation.now + seconds, another)


def _dropped_for_good(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].append("dropped")
    world.publish(an_order(if_unknown="fail"))


def _undelivered(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(failing=[131047])
    world.publish(an_order())


def _unreachable(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(failing=[131026])
    world.publish(an_order())


def _rate_limited(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(failing=[131056])
    world.publish(an_order())


def _fails(*codes: int) -> Callable[[World], None]:
    """Return the beginning of a story whose messages fail with these codes, one after the other."""

    def begin(world: World) -> None:
        world.know(PHONE)
        world.blip.fates[PHONE] = Fate(failing=codes)
        world.publish(an_order())

    return begin


def _capped_and_soon_out_of_date(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(failing=[131049])
    soon = datetime.fromtimestamp(world.simulation.now + 3600, UTC).isoformat()
    world.publish(an_order(valid_until=soon))


def _capped_and_cancelled(world: World) -> None:
    _fails(131049)(world)
    world.later(world.simulation.now + 3600, lambda: world.cancel("order-1"))


def _redriven(world: World) -> None:
    _undelivered(world)

    def redrive() -> None:
        letters = world.letters()
        for letter in letters:
            world.redrive(letter)
        if not letters:
            world.later(world.simulation.now + 2000, redrive)

    world.later(world.simulation.now + 2000, redrive)


def _failed_unseen(world: World) -> None:
    _swallowed(world)
    world.blip.fates[PHONE] = Fate(failing=[131047])


def _number_down(world: World) -> None:
    world.know(PHONE)
    world.blip.fates[PHONE] = Fate(failing=[131042])
    world.publish(an_order())
    world.publish_at(world.simulation.now + 60, an_order(id="order-2", to="+5531999997777"))


def _cancelled_in_advance(world: World) -> None:
    world.know(PHONE)
    world.cancel("order-1")
    world.publish_at(world.simulation.now + 5, an_order(metadata={"order": "1"}))


def _cancelled_while_it_waits(world: World) -> None:
    world.know(PHONE)
    world.blip.next_faults["messages"].append("unavailable")
    world.publish(an_order())
    world.later(world.simulation.now + 3, lambda: world.cancel("order-1"))


def _invalid(world: World) -> None:
    world.publish(an_order(to="1234"))
    world.publish_at(world.simulation.now + 5, an_order(to="12345"))


def _forgotten(world: World) -> None:
    _known(world)
    world.later(world.simulation.now + 3 * 3600, lambda: world.forget(an_order()))


def _restored(world: World) -> None:
    _undelivered(world)
    key = ledger_key("default", "order-1")
    for seconds in (30, 3 * 3600):
        world.later(world.simulation.now + seconds, lambda: world.restore(key))


def _beside_poison(world: World) -> None:
    world.poison()
    _known(world)
    world.later(world.simulation.now + 1, world.poison)


def _without_a_bus(world: World) -> None:
    world.bus.faults.away = [(world.simulation.now, world.simulation.now + 120)]
    _known(world)


def _refused_by_the_bus(world: World) -> None:
    world.bus.faults.never.add("order-1")
    _known(world)


def _too_large_for_the_bus(world: World) -> None:
    world.bus.faults.too_large.add("order-1")
    _known(world)


@dataclass(frozen=True)
class Story:
    """One story.

    Attributes:
        begin: what happens from outside.
        ends: the status in which it ends.
        sent: how many messages BLiP gets.
        receipts: whether they come; else only the history knows.
        trusted: the bot's history is known to be complete, so that a missing message was not sent.
        or_else: how it may end as well, if its sandbox is killed.
    """

    begin: Callable[[World], None]
    ends: str
    sent: int = 1
    receipts: bool = True
    trusted: bool = True
    or_else: str = ""


STORIES = {
    "known recipient": Story(_known, "consumed"),
    "new recipient": Story(_new, "consumed"),
    # A received message is no longer polled.
    "receipts asked for": Story(_known, "received", receipts=False, or_else="consumed"),
    "no phone number": Story(_no_phone_number, "rejected", sent=0),
    "refused by BLiP": Story(_refused, "rejected", sent=0),
    "out of date": Story(_expired, "expired", sent=0),
    "malformed": Story(_malformed, "", sent=0),
    "other content under the same id": Story(_conflict, "consumed"),
    "published twice": Story(_twice, "consumed"),
    "retried": Story(_retried, "consumed"),
    "throttled": Story(_throttled, "consumed"),
    "wrong key, then right again": Story(_misconfigured, "consumed"),
    "unknown, settled by receipts": Story(_swallowed, "consumed"),
    "unknown, settled by the history": Story(
        _swallowed, "consumed", receipts=False, or_else="received"
    ),
    "unknown, failed by the history": Story(_failed_unseen, "failed", receipts=False),
    # Killed while it sends, it is an unknown once more; and nothing is sent again twice.
    "unknown, denied, sent again": Story(_dropped, "consumed", or_else="failed"),
    "unknown, denied, given up": Story(_dropped_for_good, "failed", sent=0),
    "unknown, denied by a later message": Story(
        _dropped_among_others, "consumed", sent=3, trusted=False, or_else="failed"
    ),
    "receipt: failed": Story(_undelivered, "failed"),
    "receipt: cannot be reached": Story(_unreachable, "failed"),
    "receipt: the whole number is down": Story(_number_down, "failed", sent=2),
    "receipt: rate limit, sent again": Story(_rate_limited, "consumed", sent=2),
    "receipt: template paused, sent again": Story(_fails(132015), "consumed", sent=2),
    "receipt: capped, sent again": Story(_fails(131049), "consumed", sent=2),
    "receipt: capped, until it is given up": Story(_fails(*[131049] * 4), "failed", sent=4),
    "receipt: capped, and soon out of date": Story(_capped_and_soon_out_of_date, "failed"),
    "receipt: capped, then cancelled": Story(
        _capped_and_cancelled, "cancelled", or_else="consumed"
    ),
    "receipt: opted out": Story(_fails(131050), "failed"),
    "failed, then redriven": Story(_redriven, "consumed", sent=2),
    # Killed before it is in the ledger, the cancellation is none.
    "cancelled in advance": Story(_cancelled_in_advance, "cancelled", sent=0, or_else="consumed"),
    "cancelled while it waits": Story(
        _cancelled_while_it_waits, "cancelled", sent=0, or_else="consumed"
    ),
    "invalid, with an id": Story(_invalid, "", sent=0),
    "forgotten": Story(_forgotten, "cancelled", or_else="consumed"),
    "restored from a backup": Story(_restored, "failed"),
    "poison in the stream": Story(_beside_poison, "consumed"),
    "the event bus is away": Story(_without_a_bus, "consumed"),
    "refused by the event bus": Story(_refused_by_the_bus, "consumed"),
    "too large for the event bus": Story(_too_large_for_the_bus, "consumed"),
}


@dataclass(frozen=True)
class Point:
    """Where a sandbox is killed.

    Attributes:
        number: the number of the call within the story.
        call: its name.
        where: before it, after it, or before it while the call still takes effect.
    """

    number: int
    call: str
    where: str

    def __str__(self) -> str:
        return f"{self.where} {self.number + 1}. {self.call}"


WHERE: dict[str, tuple[Side, Crash]] = {
    "before": ("before", "at once"),
    "during": ("before", "under way"),
    "after": ("after", "at once"),
}


def calls(story: Story) -> list[str]:
    """Return the calls out of a story to which nothing happens, in their order."""
    found: list[str] = []

    def listen(process: Process, call: str, side: Side) -> None:
        if side == "before":
            found.append(f"{process.name.split()[0]}: {call}")

    broken = _run(story, listen)
    assert not broken, broken
    return found


def points(story: Story) -> Iterator[Point]:
    """Return every place where its sandbox can be killed.

    A poll that finds nothing to ask for is no part of the story.
    """
    for number, call in enumerate(calls(story)):
        if call not in {"poller: secrets.get", "poller: ledger.query"}:
            for where in WHERE:
                yield Point(number, call, where)


def killed_at(story: Story, *where: Point) -> list[str]:
    """Run a story with its sandbox killed at these points. Return the violations.

    The second point counts from the first one on, and so forth.
    """
    left = list(where)
    made = 0
    numbers: dict[tuple[Process, str], int] = {}  # of each process's last call of a name

    def kill(process: Process, call: str, side: Side) -> Crash | None:
        nonlocal made
        if not left:
            return None
        if side == "before":
            numbers[process, call] = made
            made += 1
        point_side, crash = WHERE[left[0].where]
        if side != point_side or numbers.get((process, call)) != left[0].number:
            return None
        left.pop(0)
        made = 0
        numbers.clear()
        return crash

    broken = _run(story, kill, kills=len(where))
    if len(left) == len(where):
        broken.append("it was not killed")
    return broken


def failed_at(story: Story, number: int, error: AwsError) -> list[str]:
    """Run a story in which this call to AWS fails. Return the violations."""
    made = -1
    failing = False

    def listen(_: Process, __: str, side: Side) -> None:
        nonlocal made
        made += side == "before"

    def fail(_: str) -> AwsError | None:
        nonlocal failing
        if failing or made + 1 != number:
            return None
        failing = True
        return error

    broken = _run(story, listen, kills=1, fails=fail)
    if not failing:
        broken.append("nothing failed")
    return broken


def _polled(world: World) -> bool:
    """Return whether there is a message that the history is asked about."""
    return any(world.tables["ledger"].indexes["polls"].values())


def _run(
    story: Story,
    crash: Callable[[Process, str, Side], Crash | None],
    *,
    kills: int = 0,
    fails: Callable[[str], AwsError | None] = lambda _: None,
) -> list[str]:
    # One sandbox after the other, so that the calls have one order.
    settings = Settings(concurrency=1, webhook=story.receipts, history=HistorySettings(lag=60))
    with World(1, settings=settings) as world:
        world.simulation.straggles = False
        world.simulation.crash = crash
        world.aws.fails = fails
        world.blip.read = 1.0  # so that the story has one end
        if story.trusted:
            world.trust_history()
        story.begin(world)
        world.settle(at_most=15 * 86_400)
        if not story.receipts:
            with suppress(TimeoutError):
                world.run_until(lambda: not _polled(world), at_most=4 * 86_400)
                world.settle()
        broken = world.invariants.broken()
        entry = world.entry(an_order())
        status = entry.get("status", "")
        sent = sum(map(len, world.blip.sent.values()))
        if kills and story.or_else and status == story.or_else:
            return broken
        reasons = [item.get("reason") for item in world.tables["ledger"].items.values()]
        if kills > 1 and "outcome_unknown" in reasons:
            return broken  # killed twice while it was sending
        if status != story.ends:
            broken.append(f"it ended {status or 'nowhere'}, not {story.ends}")
        if sent != story.sent:
            broken.append(f"{sent} messages were sent, not {story.sent}")
        return broken
