"""The registry of templates: what is asked, kept, published, held and released."""

import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.secrets import SecretsManagerBots
from notifier.aws.templates import DynamoDbTemplates
from notifier.domain.bots import Bot
from notifier.domain.failures import Failure, Misconfigured, Throttled, Transient
from notifier.domain.templates import (
    Category,
    RegisteredTemplate,
    Shape,
    TemplateChange,
    TemplateStatus,
    Translation,
)
from notifier.use_cases.sync_templates import RENEW_SECONDS, Syncing
from tests.support.adapters import CountingTable, FakeMeter, FakeSecretsManager
from tests.support.blip import FakeBlip
from tests.support.builders import KEY
from tests.support.clock import Clock
from tests.support.world import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

APPROVED = Translation(TemplateStatus.APPROVED, Category.UTILITY, shape=Shape(body=2))
PAUSED = replace(APPROVED, status=TemplateStatus.PAUSED)
REJECTED = replace(APPROVED, status=TemplateStatus.REJECTED)
QUARTER = 900.0


@dataclass
class Bus:
    """The event bus; takes every change unless it is `away`."""

    published: list[TemplateChange] = field(default_factory=list)
    away: bool = False

    def put(self, change: TemplateChange) -> bool:
        if not self.away:
            self.published.append(change)
        return not self.away


class World:
    """The function with what it reads and writes.

    Attributes:
        bots: the secret's content.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.table = CountingTable()
        self.blip = FakeBlip(self.clock)
        self.bus = Bus()
        self.meter = FakeMeter()
        self.bots: dict[str, Any] = {"default": {"key": KEY}}
        self.registry = DynamoDbTemplates(cast("Any", self.table), self.clock.now)

    def sync(self, seconds: float = 120) -> dict[str, int]:
        """Run the function in a new sandbox."""
        return Syncing(
            registry=DynamoDbTemplates(cast("Any", self.table), self.clock.now),
            bot_states=DynamoDbBotStates(cast("Any", self.table), self.clock.now),
            secrets=SecretsManagerBots(
                cast("Any", FakeSecretsManager(self.secret)), "bots", self.clock.now
            ),
            blip=self.blip,
            changes=self.bus,
            meter=self.meter,
            clock=self.clock,
            threads=InlineExecutor(),
            cooldown_seconds=120,
        ).sync(self.clock.now() + seconds)

    def synced_at(self) -> float:
        """Return when BLiP was last asked for all templates, as the bot's item has it."""
        states = DynamoDbBotStates(cast("Any", self.table), self.clock.now)
        return states.state("default").templates_synced_at

    def secret(self) -> str:
        return json.dumps(self.bots)

    def lists(self, **translations: Translation) -> None:
        """Change what BLiP lists: a translation in `pt_BR` for each name."""
        self.blip.listed |= {(name, "pt_BR"): each for name, each in translations.items()}

    def item(self, name: str, bot: str = "default") -> dict[str, Any]:
        return self.table.get(f"template:{bot}/{name}")


@pytest.fixture
def world() -> World:
    return World()


def synced(world: World, **translations: Translation) -> None:
    """Sync for the first time, and let a quarter of an hour pass."""
    world.lists(**translations)
    world.sync()
    world.clock.advance(QUARTER)


def test_first_sync_keeps_every_template_and_publishes_nothing(world: World) -> None:
    world.lists(one=APPROVED, two=REJECTED)

    done = world.sync()

    assert done == {"default": 2}
    assert world.registry.of_bot("default", ["one"])["one"].translations == {"pt_BR": APPROVED}
    assert world.item("two")["languages"]["pt_BR"]["status"] == "REJECTED"
    assert world.item("one")["expires_at"] == round(world.clock.now()) + 3 * 86_400
    assert world.bus.published == []
    assert world.synced_at() == pytest.approx(world.clock.now())


def test_template_that_stays_the_same_is_written_once_a_day(world: World) -> None:
    synced(world, one=APPROVED)
    asked_at = world.item("one")["asked_at"]

    world.sync()
    assert world.item("one")["asked_at"] == asked_at
    world.clock.advance(RENEW_SECONDS)
    world.sync()

    assert world.item("one")["asked_at"] == round(world.clock.now() * 1000)


def test_template_that_blip_lists_no_more_is_left_alone(world: World) -> None:
    synced(world, one=APPROVED)
    before = world.item("one")
    world.blip.listed.clear()

    world.sync()

    assert world.item("one") == before


@pytest.mark.parametrize(
    ("before", "now", "counted"),
    [
        (APPROVED, PAUSED, "template_was_paused"),
        (APPROVED, REJECTED, None),
        (replace(APPROVED, status=TemplateStatus.PENDING), APPROVED, None),
        (
            APPROVED,
            replace(APPROVED, category=Category.MARKETING),
            "template_category_changed",
        ),
    ],
    ids=["paused", "rejected", "approved", "another category"],
)
def test_change_that_matters_to_people_is_published_and_kept(
    world: World, before: Translation, now: Translation, counted: str | None
) -> None:
    synced(world, one=before)
    world.lists(one=now)

    world.sync()

    (change,) = world.bus.published
    assert (change.bot, change.name, change.language) == ("default", "one", "pt_BR")
    assert (change.previous_status, change.status) == (before.status, now.status)
    assert (change.previous_category, change.category) == (before.category, now.category)
    assert world.registry.of_bot("default", ["one"])["one"].translations["pt_BR"] == now
    assert list(world.meter.counts) == ([counted] if counted else [])


@pytest.mark.parametrize(
    "now",
    [
        replace(APPROVED, shape=Shape(body=3)),
        replace(APPROVED, status=TemplateStatus.PENDING),
        replace(APPROVED, category=None),
    ],
    ids=["edited", "pending", "category unknown"],
)
def test_other_changes_are_kept_without_an_event(world: World, now: Translation) -> None:
    synced(world, one=APPROVED)
    world.lists(one=now)

    world.sync()

    assert world.bus.published == []
    assert world.registry.of_bot("default", ["one"])["one"].translations["pt_BR"] == now


def test_template_that_is_new_to_a_synced_bot_is_published(world: World) -> None:
    synced(world, one=APPROVED)
    world.lists(two=APPROVED)

    world.sync()

    assert [(change.name, change.previous_status) for change in world.bus.published] == [
        ("two", None)
    ]


def test_event_comes_before_the_registry_and_again_until_the_bus_takes_it(world: World) -> None:
    synced(world, one=APPROVED, two=APPROVED)
    world.lists(one=PAUSED, two=replace(APPROVED, shape=Shape(body=1)))
    world.bus.away = True

    world.sync()

    assert world.item("one")["languages"]["pt_BR"]["status"] == "APPROVED"
    assert world.item("two")["languages"]["pt_BR"]["body"] == 1
    world.bus.away = False
    world.clock.advance(QUARTER)
    world.sync()
    world.sync()
    assert [change.name for change in world.bus.published] == ["one"]


def held(world: World) -> bool:
    bot_states = DynamoDbBotStates(cast("Any", world.table), world.clock.now)
    return ("one", "pt_BR") in bot_states.state("default").paused_templates


def test_pause_holds_the_template_in_every_sandbox_until_blip_approves_it(world: World) -> None:
    synced(world, one=APPROVED)
    world.lists(one=PAUSED)
    world.sync()
    assert held(world)

    world.clock.advance(QUARTER)
    world.lists(one=replace(APPROVED, status=TemplateStatus.PENDING))
    world.sync()
    assert held(world)

    world.clock.advance(QUARTER)
    world.lists(one=APPROVED)
    world.sync()
    assert not held(world)


def test_pause_that_came_while_blip_was_asked_stays(world: World) -> None:
    synced(world, one=APPROVED)

    def pause(_: Bot) -> None:
        world.clock.advance(1)
        world.registry.pause("default", "one", "pt_BR")

    world.blip.before_templates = pause
    world.sync()

    assert held(world)


@pytest.mark.parametrize(
    "failure", [Transient("none"), Misconfigured("no channel"), Throttled("too many")]
)
def test_bot_that_fails_hurts_no_other(world: World, failure: Failure) -> None:
    world.bots = {"bad": {"key": KEY, "base_url": "https://bad.example"}, "good": {"key": KEY}}
    world.lists(one=APPROVED)

    def fail(bot: Bot) -> None:
        if bot.name == "bad":
            raise failure

    world.blip.before_templates = fail

    assert world.sync() == {"good": 1}
    assert world.item("one", "good")
    assert not world.item("one", "bad")


def test_throttled_bot_cools_down_in_every_sandbox(world: World) -> None:
    def fail(_: Bot) -> None:
        raise Throttled("too many", retry_after_seconds=60)

    world.blip.before_templates = fail

    world.sync()

    bot = world.table.get("bot:default")
    assert bot["throttled_until"] == round((world.clock.now() + 60) * 1000)
    assert world.meter.counts["cooldown_began"] == 1


@pytest.mark.parametrize("stop", ["pause", "cooldown"])
def test_bot_that_is_on_hold_is_not_asked(world: World, stop: str) -> None:
    states = DynamoDbBotStates(cast("Any", world.table), world.clock.now)
    stops: dict[str, Callable[[], object]] = {
        "pause": lambda: states.pause("default"),
        "cooldown": lambda: states.start_cooldown(
            Bot(name="default", key=KEY), "commands", world.clock.now() + 60
        ),
    }
    stops[stop]()

    assert world.sync() == {}
    assert world.blip.asked_templates == []


def test_bot_that_was_synced_longest_ago_comes_first(world: World) -> None:
    world.bots = {"first": {"key": KEY}}
    world.sync()
    world.clock.advance(QUARTER)
    world.bots["second"] = {"key": KEY}
    asked: list[str] = []
    world.blip.before_templates = lambda bot: asked.append(bot.name)

    world.sync()

    assert asked == ["second", "first"]


def test_sync_without_time_stops_and_counts_as_none(world: World) -> None:
    world.lists(one=APPROVED)

    assert world.sync(seconds=5) == {}
    assert world.synced_at() == 0


def test_change_names_both_times_by_which_it_is_known_again(world: World) -> None:
    synced(world, one=APPROVED)
    stored_at = world.item("one")["asked_at"] / 1000
    world.lists(one=PAUSED)
    asked_at = world.clock.now()

    world.sync()

    (change,) = world.bus.published
    assert change.stored_at == stored_at
    assert change.time == pytest.approx(asked_at, abs=0.1)


def test_template_that_is_new_has_no_earlier_time(world: World) -> None:
    synced(world, one=APPROVED)
    world.lists(two=APPROVED)

    world.sync()

    assert [change.stored_at for change in world.bus.published] == [0.0]


def test_each_question_takes_a_slot_of_the_plan_for_commands(world: World) -> None:
    world.bots = {"default": {"key": KEY, "commands_per_second": 2}}
    states = DynamoDbBotStates(cast("Any", world.table), world.clock.now)
    states.start_cooldown(Bot(name="default", key=KEY), "commands", world.clock.now())
    world.clock.advance(1)
    began = world.clock.now()

    world.sync()

    item = world.table.get("bot:default")
    # Of the share that the cooldown has left: 0.8 of 0.9.
    slot = 1 / (2 * 0.72)
    assert item["next_commands_at"] / 1e6 == pytest.approx(began + slot, abs=0.01)
    assert "next_messages_at" not in item


def test_cooldown_lowers_the_share_of_the_plan_for_commands(world: World) -> None:
    def fail(_: Bot) -> None:
        raise Throttled("too many")

    world.blip.before_templates = fail

    world.sync()

    item = world.table.get("bot:default")
    assert item["commands_share"] == 720_000
    assert item["throttled_until"] == round((world.clock.now() + 120) * 1000)


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("secret", {"msg": "no bot can be asked"}),
        ("paused", {"msg": "not synced now", "bot": "default"}),
        (
            "away",
            {"msg": "templates not synced", "bot": "default", "problem": "no answer"},
        ),
        (
            "changed",
            {"msg": "template changed", "bot": "default", "template": "one", "language": "pt_BR"},
        ),
        (
            "bus",
            {
                "msg": "template change not published",
                "bot": "default",
                "template": "one",
                "language": "pt_BR",
            },
        ),
    ],
)
def test_what_a_sync_comes_to_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, how: str, line: dict[str, str]
) -> None:
    synced(world, one=APPROVED)
    caplog.clear()
    caplog.set_level(logging.INFO, "notifier")

    def fail(_: Bot) -> None:
        raise Transient("no answer")

    match how:
        case "secret":
            world.bots = cast("Any", [])
        case "paused":
            DynamoDbBotStates(cast("Any", world.table), world.clock.now).pause("default")
        case "away":
            world.blip.before_templates = fail
        case _:
            world.lists(one=PAUSED)
            world.bus.away = how == "bus"
    world.sync()

    assert [{name: vars(record)[name] for name in line} for record in caplog.records] == [line]
    assert how != "secret" or "is not a JSON object" in vars(caplog.records[0])["problem"]


@pytest.mark.parametrize("status", ["REJECTED", "DISABLED"])
def test_pause_ends_with_a_template_that_whatsapp_refuses_for_good(
    world: World, status: str
) -> None:
    synced(world, one=APPROVED)
    world.lists(one=PAUSED)
    world.sync()
    world.clock.advance(QUARTER)
    world.lists(one=replace(APPROVED, status=TemplateStatus(status)))

    world.sync()

    assert not held(world)


def test_pause_ends_with_a_template_that_is_listed_no_more(world: World) -> None:
    synced(world, one=PAUSED, two=APPROVED)
    assert held(world)
    del world.blip.listed["one", "pt_BR"]

    world.sync()

    assert not held(world)


def test_change_that_a_question_found_first_is_published_all_the_same(world: World) -> None:
    synced(world, one=APPROVED)
    now = world.clock.now()
    world.registry.keep("default", RegisteredTemplate("one", now, {"pt_BR": PAUSED}))
    world.clock.advance(1)
    world.lists(one=PAUSED)

    world.sync()
    world.clock.advance(QUARTER)
    world.sync()

    assert [(change.previous_status, change.status) for change in world.bus.published] == [
        (TemplateStatus.APPROVED, TemplateStatus.PAUSED)
    ]
    assert world.meter.counts["template_was_paused"] == 1


def test_list_that_is_older_than_the_registry_changes_nothing(world: World) -> None:
    synced(world, one=APPROVED)
    asked_at = world.clock.now() + 5

    def question(_: Bot) -> None:
        world.clock.advance(5)
        world.registry.keep("default", RegisteredTemplate("one", asked_at, {"pt_BR": APPROVED}))

    world.lists(one=REJECTED)
    world.blip.before_templates = question

    world.sync()

    assert world.bus.published == []
    assert world.item("one")["asked_at"] == round(asked_at * 1000)


def test_crash_of_one_bot_stops_no_other_and_is_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bots = {"bad": {"key": KEY}, "good": {"key": KEY}}
    world.lists(one=APPROVED)
    of_bot = DynamoDbTemplates.of_bot

    def crash(registry: DynamoDbTemplates, bot: str, names: Any) -> Any:
        if bot == "bad":
            raise OSError("away")
        return of_bot(registry, bot, names)

    monkeypatch.setattr(DynamoDbTemplates, "of_bot", crash)

    with pytest.raises(OSError, match="away"):
        world.sync()

    assert world.item("one", "good")
    assert not world.item("one", "bad")
