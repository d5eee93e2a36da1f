"""The registry's items: written and read back, asked about once a minute, paused and resumed."""

import pytest

from notifier.aws.table import UnreadError
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)
from tests.integration.aws.backends import Backend

NAME = ("default", "order_shipped")
FULL = Translation(
    status=TemplateStatus.APPROVED,
    category=Category.MARKETING,
    previous_category=Category.UTILITY,
    shape=Shape(HeaderKind.TEXT, 12, ("name", "day"), 80, (ButtonKind.URL, ButtonKind.STATIC)),
    cards=(Shape(HeaderKind.IMAGE), Shape(HeaderKind.IMAGE, body=2, buttons=(ButtonKind.URL,))),
    ttl_seconds=3600,
    is_understood=False,
)
PLAIN = Translation(TemplateStatus.PAUSED)


def template(backend: Backend, age: float = 0, **languages: Translation) -> RegisteredTemplate:
    return RegisteredTemplate(NAME[1], backend.clock.now() - age, languages or {"pt_BR": PLAIN})


def read(backend: Backend) -> RegisteredTemplate | None:
    """Read it with a batch's call, in a new sandbox."""
    found: dict[tuple[str, str], RegisteredTemplate] = backend.identities().read([], [], [NAME])[2]
    return found.get(NAME)


def test_template_is_read_as_it_was_written(backend: Backend) -> None:
    written = template(backend, pt_BR=FULL, en=PLAIN)

    backend.templates().keep("default", written)

    assert read(backend) == written
    assert backend.templates().of_bot("default", [NAME[1], "other"]) == {NAME[1]: written}


def test_template_that_is_not_there_is_known_in_no_language(backend: Backend) -> None:
    assert read(backend) == RegisteredTemplate(NAME[1], 0, {})


def test_values_of_a_later_release_are_not_known_here(backend: Backend) -> None:
    backend.templates().keep("default", template(backend))
    written = {
        "status": "BANNED",
        "category": "SERVICE",
        "header": "hologram",
        "buttons": ["url", "shake"],
        "new": 1,
    }
    backend.change("identities", "template:default/order_shipped", languages={"pt_BR": written})

    found = read(backend)

    assert found is not None
    assert found.translations["pt_BR"] == Translation(
        TemplateStatus.OTHER, shape=Shape(buttons=(ButtonKind.URL, ButtonKind.OTHER))
    )


def test_sandbox_remembers_a_template_for_five_minutes(backend: Backend) -> None:
    identities = backend.identities()
    backend.templates().keep("default", template(backend))
    first = identities.read([], [], [NAME])[2]
    backend.clock.advance(200)
    backend.templates().keep("default", template(backend, pt_BR=FULL))

    assert identities.read([], [], [NAME])[2] == first
    backend.clock.advance(101)
    assert identities.read([], [], [NAME])[2][NAME].translations["pt_BR"] == FULL


def test_earlier_answer_replaces_no_later_one(backend: Backend) -> None:
    later = template(backend, pt_BR=FULL)
    backend.templates().keep("default", later)

    backend.templates().keep("default", template(backend, age=1))

    assert read(backend) == later


def test_one_sandbox_a_minute_may_ask_for_a_template(backend: Backend) -> None:
    backend.templates().keep("default", template(backend))
    now = backend.clock.now()

    assert backend.templates().question(*NAME).granted
    refused = backend.templates().question(*NAME)
    assert not refused.granted
    assert refused.stored == template(backend)
    assert refused.again_at == pytest.approx(now + 60, abs=0.01)
    backend.clock.advance(60)
    assert backend.templates().question(*NAME).granted


def test_template_that_the_registry_lacks_is_not_asked_for(backend: Backend) -> None:
    assert not backend.templates().question(*NAME).granted


def paused(backend: Backend) -> set[tuple[str, str]]:
    return set(backend.bot_states().state("default").paused_templates)


def test_pause_stands_in_the_item_of_the_bot_until_it_is_resumed(backend: Backend) -> None:
    backend.templates().pause("default", "one", "pt_BR")
    backend.templates().pause("default", "two", "en")
    backend.clock.advance(1)
    backend.templates().pause("default", "one", "pt_BR")
    assert paused(backend) == {("one", "pt_BR"), ("two", "en")}
    backend.clock.advance(1)

    assert backend.templates().resume("default", "one", "pt_BR", backend.clock.now())

    assert paused(backend) == {("two", "en")}
    assert not backend.templates().resume("default", "one", "pt_BR", backend.clock.now())


def test_answer_from_before_the_pause_resumes_nothing(backend: Backend) -> None:
    asked_at = backend.clock.now()
    backend.clock.advance(1)
    backend.templates().pause("default", "one", "pt_BR")

    assert not backend.templates().resume("default", "one", "pt_BR", asked_at)
    assert paused(backend) == {("one", "pt_BR")}


def test_item_of_the_bot_holds_no_more_than_a_hundred_pauses(backend: Backend) -> None:
    for number in range(101):
        backend.templates().pause("default", f"template_{number}", "pt_BR")

    assert len(paused(backend)) == 100


def test_sync_is_recorded_in_the_item_of_the_bot(backend: Backend) -> None:
    assert backend.bot_states().state("default").templates_synced_at == 0

    backend.templates().synced("default", 1_800_000_123.0)

    assert backend.bot_states().state("default").templates_synced_at == 1_800_000_123.0


def test_pause_by_several_receipts_at_once_is_resumed_as_one(backend: Backend) -> None:
    backend.templates().pause("default", "other", "en")
    elements = {f"one/pt_BR@{round(backend.clock.now() * 1000) + after}" for after in (1, 2, 3)}
    held = backend.item("identities", "bot:default")["paused_templates"]
    backend.change("identities", "bot:default", paused_templates=held | elements)
    backend.clock.advance(1)

    assert backend.templates().resume("default", "one", "pt_BR", backend.clock.now())

    assert paused(backend) == {("other", "en")}


def test_what_was_published_is_written_by_the_sync_only(backend: Backend) -> None:
    backend.templates().keep_published("default", template(backend, age=60, pt_BR=FULL))
    backend.templates().keep("default", template(backend, pt_BR=PLAIN))

    found = read(backend)

    assert found is not None
    assert found.translations == {"pt_BR": PLAIN}
    assert found.published == {"pt_BR": (TemplateStatus.APPROVED, Category.MARKETING)}


def test_registry_that_is_read_in_part_only_is_not_taken_for_new(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates = backend.templates()
    monkeypatch.setattr(templates._table, "get_many", lambda keys: ([], set(keys)))

    with pytest.raises(UnreadError):
        templates.of_bot("default", ["one"])
