"""A request and its template: what is refused before a look-up, what waits, and what is sent."""

from dataclasses import replace
from typing import Any

import pytest

from notifier.domain.failures import Failure, Misconfigured, Rejected, Throttled, Transient
from notifier.domain.failures import Reason as Why
from notifier.domain.templates import (
    Category,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)
from tests.support.builders import PHONE, a_request
from tests.support.world import Sandbox, World
from tests.unit.use_cases.send_notification.helpers import DAY, ends, outcome

NAME = "order_shipped"
FITS = Translation(TemplateStatus.APPROVED, Category.UTILITY, shape=Shape(body=2))
MISFITS = replace(FITS, shape=Shape(body=3))


def register(
    world: World, translation: Translation | None = None, *, asked_at: float, name: str = NAME
) -> None:
    """Put a template into the registry, as BLiP described it then."""
    languages = {"pt_BR": FITS if translation is None else translation}
    world.sandbox().registry.keep("default", RegisteredTemplate(name, asked_at, languages))


def blip_lists(world: World, translation: Translation, name: str = NAME) -> None:
    world.blip.listed[name, "pt_BR"] = translation


def nothing_was_done(world: World) -> bool:
    return not (world.blip.look_ups or world.blip.sent)


def item(world: World, name: str = NAME) -> dict[str, Any]:
    return world.identities_table.get(f"template:default/{name}")


def test_request_that_fits_its_template_is_sent_without_a_question(world: World) -> None:
    register(world, asked_at=world.clock.now() - 600)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.asked_templates == []
    assert "template_unknown" not in world.meter.counts


def test_misfit_by_a_later_answer_is_a_dead_letter_before_any_look_up(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now())
    queued = world.queued(a_request(), age=60)

    (result,) = world.sandbox().deliver(queued)

    assert outcome(result) == "dead_letter"
    assert nothing_was_done(world)
    assert world.blip.asked_templates == []
    (letter,) = world.dead_letters.letters
    assert letter.reason is Why.TEMPLATE_MISMATCH
    assert letter.failure["phase"] == "template"
    assert letter.failure["attempts"] == 0
    (broken,) = letter.failure["fields"]
    assert broken["field"] == "template.body"
    assert broken["problem"] == "the template has 3 variables, 2 values came"
    assert letter.failure["detail"] == "template.body: the template has 3 variables, 2 values came"


def test_misfit_by_an_older_answer_is_judged_by_what_blip_says_now(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)

    (result,) = world.sandbox().deliver(a_request())

    assert ends(world)[0][0] == "template_mismatch"
    assert outcome(result) == "dead_letter"
    assert world.blip.asked_templates == [NAME]
    assert nothing_was_done(world)


def test_template_that_was_edited_is_sent_and_its_entry_renewed(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, FITS)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    assert item(world)["asked_at"] == pytest.approx(world.clock.now() * 1000, abs=100)
    assert item(world)["languages"]["pt_BR"]["body"] == 2


def test_template_that_blip_lists_no_more_is_sent(world: World) -> None:
    """Up to 20 minutes pass from its approval until BLiP knows a template."""
    register(world, MISFITS, asked_at=world.clock.now() - 600)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    # It is not asked for again before the next sync.
    assert item(world)["languages"] == {}


@pytest.mark.parametrize(
    "failure",
    [
        Transient("no answer"),
        Misconfigured("no channel"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_request_is_put_off_without_an_attempt_if_blip_does_not_answer(
    world: World, failure: Failure
) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    body = a_request()

    def fail(_: object) -> None:
        raise failure

    world.blip.before_templates = fail
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in is not None
    assert 30 <= result.retry_in <= 60
    assert world.entry(body)["status"] == "retrying"
    assert world.entry(body)["attempts"] == 0
    assert nothing_was_done(world)
    assert not world.dead_letters.letters


def test_request_is_sent_if_blip_cannot_be_asked_for_one_template(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)

    def fail(_: object) -> None:
        raise Rejected(Why.REJECTED, "resource not supported", code=62)

    world.blip.before_templates = fail
    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"


def test_throttled_question_starts_the_cooldown_of_the_bot(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)

    def fail(_: object) -> None:
        raise Throttled("too many")

    world.blip.before_templates = fail
    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "cooling_down"
    bot = world.identities_table.get("bot:default")
    assert bot["throttled_until"] > world.clock.now() * 1000
    assert "commands_share" in bot


def test_one_template_is_asked_for_once_by_a_whole_batch(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)

    world.sandbox().deliver(*(a_request(to=f"+55319900000{n}") for n in range(10, 20)))

    assert world.blip.asked_templates == [NAME]
    assert [reason for reason, _ in ends(world)] == ["template_mismatch"] * 10


def test_other_sandbox_takes_the_answer_that_has_come_meanwhile(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)
    other = world.sandbox()
    remembers(other)
    queued = world.queued(a_request())
    world.clock.advance(5)
    world.sandbox().deliver(a_request())

    (result,) = other.deliver(queued)

    assert outcome(result) == "dead_letter"
    assert world.blip.asked_templates == [NAME]


def test_blip_is_asked_for_one_template_once_a_minute_by_all_sandboxes(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)
    world.sandbox().deliver(a_request())
    world.clock.advance(20)

    body = a_request()
    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "retry_later"
    assert result.retry_in is not None
    assert 40 <= result.retry_in <= 45
    assert world.entry(body)["attempts"] == 0
    world.clock.advance(result.retry_in)
    (again,) = world.sandbox().deliver(body)
    assert outcome(again) == "dead_letter"
    assert world.blip.asked_templates == [NAME, NAME]


@pytest.mark.parametrize(
    "translation",
    [
        replace(MISFITS, status=TemplateStatus.PENDING),
        replace(MISFITS, status=TemplateStatus.OTHER),
        replace(MISFITS, is_understood=False),
    ],
    ids=["pending", "another status", "not understood"],
)
def test_request_is_sent_if_it_is_doubtful_whether_it_fits(
    world: World, translation: Translation
) -> None:
    register(world, translation, asked_at=world.clock.now())

    (result,) = world.sandbox().deliver(world.queued(a_request(), age=60))

    assert outcome(result) == "sent"
    assert world.meter.counts["template_unknown"] == 1


@pytest.mark.parametrize("age", [None, DAY + 1], ids=["not in the registry", "a day old"])
def test_request_is_sent_and_counted_if_its_template_is_not_known(
    world: World, age: float | None
) -> None:
    if age is not None:
        register(world, MISFITS, asked_at=world.clock.now() - age)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"
    assert world.meter.counts["template_unknown"] == 1
    assert world.blip.asked_templates == []


@pytest.mark.parametrize(
    ("translation", "language", "detail"),
    [
        (
            replace(FITS, status=TemplateStatus.REJECTED),
            "pt_BR",
            "WhatsApp has rejected the template",
        ),
        (
            replace(FITS, status=TemplateStatus.DISABLED),
            "pt_BR",
            "WhatsApp has disabled the template",
        ),
        (FITS, "en", "the template has no translation en"),
    ],
    ids=["rejected", "disabled", "no such language"],
)
def test_template_that_cannot_be_sent_is_a_dead_letter_before_any_look_up(
    world: World, translation: Translation, language: str, detail: str
) -> None:
    register(world, translation, asked_at=world.clock.now())
    blip_lists(world, translation)
    body = a_request(template={"name": NAME, "language": language, "body": ["a", "b"]})

    world.sandbox().deliver(world.queued(body, age=60))

    (letter,) = world.dead_letters.letters
    assert (letter.reason, letter.failure["detail"]) == (Why.TEMPLATE_UNAVAILABLE, detail)
    assert world.entry(body)["status"] == "rejected"
    assert nothing_was_done(world)


def test_language_is_missed_only_if_blip_was_asked_for_the_template_alone(world: World) -> None:
    """A list that changes while it is read page by page may lack a translation."""
    register(world, asked_at=world.clock.now())
    world.blip.listed |= {(NAME, "pt_BR"): FITS, (NAME, "en"): FITS}
    in_english = {"name": NAME, "language": "en", "body": ["a", "b"]}

    (result,) = world.sandbox().deliver(world.queued(a_request(template=in_english), age=60))

    assert outcome(result) == "sent"
    assert world.blip.asked_templates == [NAME]


def test_language_that_is_missing_is_asked_about_once_for_all(world: World) -> None:
    register(world, asked_at=world.clock.now() - 10)
    blip_lists(world, FITS)
    in_english = {"name": NAME, "language": "en", "body": ["a", "b"]}
    requests = [world.queued(a_request(template=in_english), age=60) for _ in range(30)]

    for request in requests:
        world.sandbox().deliver(request)

    assert [reason for reason, _ in ends(world)] == ["template_unavailable"] * 30
    assert world.blip.asked_templates == [NAME]


def test_paused_template_holds_its_requests_unclaimed_and_no_others(world: World) -> None:
    world.sandbox().registry.pause("default", NAME, "pt_BR")
    held = a_request()
    other = a_request(to="+5531988887777", template={"name": "other", "language": "pt_BR"})

    result, goes_on = world.sandbox().deliver(held, other)

    assert outcome(result) == "template_paused"
    assert result.on_hold
    assert world.entry(held) == {}
    assert outcome(goes_on) == "sent"


def test_pause_ends_after_six_hours_if_the_registry_is_not_synced_any_more(world: World) -> None:
    world.sandbox().registry.pause("default", NAME, "pt_BR")
    body = a_request()
    world.clock.advance(6 * 3600 - 60)
    assert outcome(world.sandbox().deliver(body)[0]) == "template_paused"

    world.clock.advance(61)

    assert outcome(world.sandbox().deliver(body)[0]) == "sent"


def test_pause_that_the_registry_confirms_lasts(world: World) -> None:
    world.sandbox().registry.pause("default", NAME, "pt_BR")
    world.clock.advance(600)
    world.sandbox().registry.synced("default", world.clock.now())
    world.clock.advance(2 * DAY)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "template_paused"


def test_pause_of_one_language_holds_no_other(world: World) -> None:
    world.sandbox().registry.pause("default", NAME, "en")

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"


def test_paused_template_keeps_no_request_beyond_its_time(world: World) -> None:
    world.sandbox().registry.pause("default", NAME, "pt_BR")
    body = a_request(valid_until="2020-01-01T00:00:00Z")

    world.sandbox().deliver(body)

    assert [reason for reason, _ in ends(world)] == ["expired"]


def test_pause_that_only_the_registry_knows_is_asked_about_and_shared(world: World) -> None:
    paused = replace(FITS, status=TemplateStatus.PAUSED)
    register(world, paused, asked_at=world.clock.now() - 600)
    blip_lists(world, paused)
    body = a_request()

    (result,) = world.sandbox().deliver(body)

    assert outcome(result) == "template_paused"
    assert world.entry(body)["attempts"] == 0
    (again,) = world.sandbox().deliver(body)
    assert outcome(again) == "template_paused"
    assert world.blip.asked_templates == [NAME]
    assert nothing_was_done(world)


def test_template_approved_since_the_registry_called_it_paused_is_sent(world: World) -> None:
    register(world, replace(FITS, status=TemplateStatus.PAUSED), asked_at=world.clock.now() - 600)
    blip_lists(world, FITS)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "sent"


def test_registry_is_read_with_the_call_that_is_made_anyway(world: World) -> None:
    register(world, asked_at=world.clock.now())
    sandbox = world.sandbox()

    sandbox.deliver(a_request())

    assert sandbox.identities.reads == 1


def test_age_of_the_last_sync_is_measured_by_each_bot_that_sends(world: World) -> None:
    world.sandbox().deliver(a_request())
    assert "templates_late" not in world.meter.times

    world.sandbox().registry.synced("default", world.clock.now() - 7200)
    world.sandbox().deliver(a_request())

    assert world.meter.times["templates_late"] == [pytest.approx(7200, abs=1)]


def test_category_stands_in_the_ledger_and_in_status_events(world: World) -> None:
    register(world, asked_at=world.clock.now())
    body = a_request()

    world.sandbox().deliver(body)

    assert world.entry(body)["category"] == "UTILITY"
    assert [event.category for event in world.events.published] == ["UTILITY"]


def remembers(sandbox: Sandbox) -> None:
    """Read the registry in a sandbox, which remembers it."""
    sandbox.identities.read([], ["default"], [("default", NAME)])


def test_each_template_of_a_batch_is_asked_for_by_its_own_name(world: World) -> None:
    for name in (NAME, "other"):
        register(world, MISFITS, asked_at=world.clock.now() - 600, name=name)
        blip_lists(world, FITS, name)
    other = {"name": "other", "language": "pt_BR", "body": ["a", "b"]}

    results = world.sandbox().deliver(a_request(), a_request(to="+5531988887777", template=other))

    assert list(map(outcome, results)) == ["sent", "sent"]
    assert sorted(map(str, world.blip.asked_templates)) == [NAME, "other"]
    assert world.meter.counts["template_asked"] == 2


def test_question_takes_a_slot_of_the_plan_for_commands(world: World) -> None:
    world.know(PHONE)
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, FITS)
    sandbox = world.sandbox()

    sandbox.deliver(a_request())

    assert ("default", "commands", 1) in sandbox.bot_states.reservations


def test_throttled_question_waits_for_the_end_of_the_cooldown(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)

    def fail(_: object) -> None:
        raise Throttled("too many", retry_after_seconds=100)

    world.blip.before_templates = fail
    (result,) = world.sandbox().deliver(a_request())

    assert result.retry_in == pytest.approx(115, abs=1)


def test_answer_from_within_the_clocks_difference_is_no_proof(world: World) -> None:
    published_at = world.clock.now() - 60
    register(world, MISFITS, asked_at=published_at + 1)
    blip_lists(world, FITS)

    (result,) = world.sandbox().deliver(world.queued(a_request(), age=60))

    assert outcome(result) == "sent"
    assert world.blip.asked_templates == [NAME]


def test_question_is_not_begun_without_the_time_for_it(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)

    (result,) = world.sandbox().deliver(a_request(), seconds=11)

    assert outcome(result) == "retry_later"
    assert world.blip.asked_templates == []


def test_requests_are_sent_together_if_blip_does_not_list_their_template_alone(
    world: World,
) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    requests = [world.queued(a_request()) for _ in range(30)]
    world.clock.advance(3)

    outcomes = [outcome(world.sandbox().deliver(request)[0]) for request in requests]

    assert outcomes == ["sent"] * 30
    assert world.blip.asked_templates == [NAME]


def test_answer_that_another_sandbox_got_sends_what_fits_it(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, FITS)
    other = world.sandbox()
    remembers(other)
    world.sandbox().deliver(a_request())
    world.clock.advance(20)

    (result,) = other.deliver(a_request())

    assert outcome(result) == "sent"
    assert world.blip.asked_templates == [NAME]


def test_remembered_pause_does_not_outlive_a_later_sync(world: World) -> None:
    paused = replace(FITS, status=TemplateStatus.PAUSED)
    register(world, paused, asked_at=world.clock.now() - 30)
    sandbox = world.sandbox()
    remembers(sandbox)
    register(world, FITS, asked_at=world.clock.now() - 10)
    sandbox.registry.synced("default", world.clock.now() - 10)

    (result,) = sandbox.deliver(world.queued(a_request(), age=60))

    assert outcome(result) == "sent"
    assert "paused_templates" not in world.identities_table.get("bot:default")


def test_question_that_there_is_no_time_for_is_left_to_another_sandbox(world: World) -> None:
    register(world, MISFITS, asked_at=world.clock.now() - 600)
    blip_lists(world, MISFITS)
    world.sandbox().deliver(a_request(), seconds=11)

    (result,) = world.sandbox().deliver(a_request())

    assert outcome(result) == "dead_letter"


def test_category_that_is_a_day_old_is_not_known(world: World) -> None:
    register(world, asked_at=world.clock.now() - DAY - 1)
    body = a_request()

    world.sandbox().deliver(body)

    assert world.entry(body)["category"] is None
