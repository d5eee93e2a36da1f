"""Slow plans and long waits, within the bounds of the template's parameters."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from notifier.domain.failures import Reason
from tests.faults.blip import (
    Account,
    BlipFaults,
    HistorySettings,
)
from tests.faults.hardships.rows import DAY, START, Came, bot_item, publish, reason_of
from tests.faults.world import POLICY, Faults, Settings, World

# --- Slow plans -----------------------------------------------------------------------------------


# The template's parameters that decide on waits, with their bounds.
TEMPLATE = Path(__file__).parents[3] / "template.yaml"
_BOUND = re.compile(r"^    (MinValue|MaxValue): (\d+)", re.MULTILINE)


def bounds() -> dict[str, tuple[int, int]]:
    """Return the bounds of the template's numeric parameters, as settings are named."""
    found = {}
    parameters = TEMPLATE.read_text(encoding="utf-8").partition("\nResources:")[0]
    for name, text in re.findall(r"^  (\w+):\n((?:    .*\n)+)", parameters, re.MULTILINE):
        values = dict(_BOUND.findall(text))
        if len(values) == 2:
            setting = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
            found[setting] = int(values["MinValue"]), int(values["MaxValue"])
    return found


def _settings() -> Iterator[tuple[str, Settings]]:
    """Yield the stack with each parameter at both bounds, and with all of them."""
    limits = {name: both for name, both in bounds().items() if name in {*POLICY, *STACK}}
    yield "as it is", Settings()
    for side, which in (("least", 0), ("most", 1)):
        for name, both in limits.items():
            yield f"{name} {both[which]}", _with({name: both[which]})
        yield f"all {side}", _with({name: both[which] for name, both in limits.items()})


STACK = {"maximum_concurrency": "concurrency", "function_timeout_seconds": "timeout"}


def _with(values: Mapping[str, int]) -> Settings:
    stack = {STACK[name]: value for name, value in values.items() if name in STACK}
    policy = {name: value for name, value in values.items() if name in POLICY}
    return Settings(**cast("Any", stack), policy=policy)


WEEK = 7 * DAY
MAX_RECEIVES = 700
# What keeps a request waiting for a week.
WAITS = ("for a slot", "outage", "cooldowns", "history fails")


def _slow(came: Came, name: str, settings: Settings, plan: float, requests: int, seed: int) -> int:
    bot = Account("default", plan, plan)
    with World(seed, bots=[bot], settings=settings) as world:
        published = publish(world, range(requests // 2))
        publish(world, range(requests // 2, requests), known=False)
        world.settle(at_most=WEEK)
        return _judge_waits(came, name, world, bot, len(published))


def _waiting(came: Came, name: str, settings: Settings, wait: str, week: float, seed: int) -> int:
    """Make a few requests wait for a week, or until they expire."""
    bot = Account("default")
    spells: list[Any] = []
    if wait != "for a slot":
        fault = {"outage": "refused", "cooldowns": "throttled", "history fails": "dropped"}[wait]
        spells.append((START, START + 10 * DAY, fault, None))
    faults = Faults(blip=BlipFaults(spells=spells))
    settings = replace(settings, history=HistorySettings(answers=False))
    with World(seed, bots=[bot], settings=settings, faults=faults) as world:
        if wait == "for a slot":

            def hold() -> None:
                # Others have every slot of the next ten seconds.
                bot_item(world)["next_messages_at"] = round((world.simulation.now + 10) * 1_000_000)
                world.simulation.at(world.simulation.now + 5, hold)

            hold()
        publish(world, range(4))
        world.run(week)
        return _judge_waits(came, name, world, None, 0)


def _judge_waits(came: Came, name: str, world: World, bot: Account | None, requests: int) -> int:
    receive_count = world.requests.most_receives
    came.check(f"{name}: {receive_count} receive_count", held=receive_count <= MAX_RECEIVES)
    timeouts = world.sending.timeouts
    came.check(f"{name}: {timeouts} time-outs", held=timeouts == 0)
    came.check(f"{name}: SQS gave up", held=not world.requests.exhausted)
    if bot is not None:
        came.check(f"{name}: {bot.throttled} throttled", held=bot.throttled == 0)
        # A connection that BLiP closes while its slot is waited for is an attempt, and may be the
        # only one that a notification has.
        fair = {Reason.WAITED_TOO_LONG}
        if world.settings.policy.get("max_attempts") == 1:
            fair.add(Reason.RETRIES_EXHAUSTED)
        early = [
            reason_of(letter)
            for letter in world.invariants.letters
            if reason_of(letter) not in fair
        ]
        came.check(f"{name}: {early[:3]}", held=not early)
        came.check(f"{name}: nothing of {requests} sent", held=bool(world.blip.sent))
    return receive_count


def slow_plan(
    *,
    plans: Iterable[float] = (0.1, 0.3, 1),
    requests: int = 60,
    waits: Iterable[str] = WAITS,
    week: float = WEEK,
    only: Callable[[str], bool] = lambda _: True,
    seed: int = 1,
) -> Came:
    """Run slow plans and waits of a week with every parameter at both of its bounds."""
    came, most, count = Came(), 0, 0
    for name, settings in _settings():
        if not only(name):
            continue
        for plan in plans:
            count += 1
            most = max(
                most, _slow(came, f"{name}, {plan:g} a second", settings, plan, requests, seed)
            )
        for wait in waits:
            count += 1
            most = max(most, _waiting(came, f"{name}, {wait}", settings, wait, week, seed))
    came.summary = f"no time-out, {most} receive_count at most, in {count} runs"
    return came
