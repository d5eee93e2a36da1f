"""The client's questions for templates: what it asks, page by page, and what answers come to."""

import json
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from notifier.blip import templates as templates_module
from notifier.blip.client import BlipClient
from notifier.domain.failures import Failure, Misconfigured, Rejected, Throttled, Transient
from notifier.domain.templates import RegisteredTemplate, Translation
from tests.support.builders import a_bot
from tests.unit.blip.test_templates import BODY, entry

type Json = dict[str, Any]

ASKED_AT = 1_800_000_000.0
PLAIN = "/message-templates"
ENRICHED = "/message-templates-enriched"


def as_data(items: list[Any], _: int) -> Any:
    return {"data": items}


def as_items(items: list[Any], total: int) -> Any:
    return {"total": total, "itemType": "application/json", "items": items}


def as_list(items: list[Any], _: int) -> Any:
    return items


def entries(count: int) -> list[Json]:
    return [entry(BODY, name=f"template_{number}") for number in range(count)]


@dataclass
class Lists:
    """Answers the questions as one of BLiP's servers may.

    Attributes:
        entries: what it lists.
        envelope: in which form.
        page: how much it hands out at once.
        by_name: whether a name chooses an entry.
        skips: whether it minds `$skip`.
        takes: whether it minds `$take`.
        failures: LIME's codes by the list that fails with it, and by the number of the question.
        asked: the list, the name, `$skip` and `$take` of each question.
    """

    entries: list[Any]
    envelope: Callable[[list[Any], int], Any] = as_data
    page: int = 100
    by_name: Callable[[str, str], bool] = str.__eq__
    skips: bool = True
    takes: bool = True
    failures: dict[str | int, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None, int, int]] = field(default_factory=list)

    @property
    def client(self) -> BlipClient:
        return BlipClient(1, 10, transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        envelope = json.loads(request.content)
        assert (envelope["method"], envelope["to"]) == ("get", "postmaster@wa.gw.msging.net")
        uri = urlsplit(envelope["uri"])
        query = {name: values[0] for name, values in parse_qs(uri.query).items()}
        name, skip, take = query.get("templateName"), int(query["$skip"]), int(query["$take"])
        self.asked.append((uri.path, name, skip, take))
        code = self.failures.get(uri.path) or self.failures.get(len(self.asked))
        if code is not None:
            reason = {"code": code, "description": "x"}
            return httpx.Response(200, json={"status": "failure", "reason": reason})
        found = [
            one
            for one in self.entries
            if name is None or not isinstance(one, dict) or self.by_name(name, one["name"])
        ]
        skip = skip if self.skips else 0
        page = found[skip : skip + min(take, self.page)] if self.takes else found
        resource = self.envelope(page, len(found))
        return httpx.Response(200, json={"status": "success", "resource": resource})


def at_once() -> None:
    """Do not wait for a slot."""


def templates(lists: Lists) -> dict[str, RegisteredTemplate]:
    return lists.client.templates(a_bot(), ASKED_AT, at_once)


def template(lists: Lists, name: str = "template_1") -> RegisteredTemplate | None:
    return lists.client.template(a_bot(), name, ASKED_AT, at_once)


def names(count: int) -> set[str]:
    return {one["name"] for one in entries(count)}


# --- The whole list -------------------------------------------------------------------------------


@pytest.mark.parametrize("envelope", [as_data, as_items, as_list])
def test_each_envelope_is_read(envelope: Callable[[list[Any], int], Any]) -> None:
    lists = Lists(entries(3), envelope)
    found = templates(lists)
    assert set(found) == names(3)
    assert found["template_0"].asked_at == ASKED_AT
    assert lists.asked == [(ENRICHED, None, 0, 100)]


def test_list_is_read_page_by_page_until_a_short_one() -> None:
    lists = Lists(entries(250))
    assert set(templates(lists)) == names(250)
    assert lists.asked == [(ENRICHED, None, skip, 100) for skip in (0, 100, 200)]


@pytest.mark.parametrize("envelope", [as_data, as_items, as_list])
def test_empty_page_ends_a_list_of_whole_pages(
    envelope: Callable[[list[Any], int], Any],
) -> None:
    lists = Lists(entries(200), envelope)
    assert set(templates(lists)) == names(200)
    assert len(lists.asked) == 3


def test_page_that_is_not_found_ends_a_list_of_whole_pages() -> None:
    lists = Lists(entries(100), failures={2: 67})
    assert set(templates(lists)) == names(100)


def test_short_page_ends_no_list_that_says_it_has_more() -> None:
    lists = Lists(entries(120), as_items, page=50)
    assert set(templates(lists)) == names(120)
    assert [skip for _, _, skip, _ in lists.asked] == [0, 50, 100]


def test_list_of_6000_templates_takes_61_questions() -> None:
    lists = Lists(entries(6000))
    assert set(templates(lists)) == names(6000)
    assert len(lists.asked) == 61


def test_server_that_ignores_skip_is_asked_twice() -> None:
    lists = Lists(entries(150), skips=False)
    assert set(templates(lists)) == names(100)
    assert len(lists.asked) == 2


def test_server_that_ignores_take_is_asked_once() -> None:
    lists = Lists(entries(350), takes=False)
    assert set(templates(lists)) == names(350)
    assert len(lists.asked) == 1


def test_list_without_an_end_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates_module, "MAX_PAGES", 5)
    lists = Lists(entries(10_000))
    with pytest.raises(Transient, match="does not end"):
        templates(lists)
    assert len(lists.asked) == 6


def test_failure_between_pages_leaves_no_half_list() -> None:
    for code, kind in ((61, Transient), (34, Throttled), (62, Misconfigured), (13, Misconfigured)):
        with pytest.raises(kind):
            templates(Lists(entries(250), failures={2: code}))


# --- Enriched or plain ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [62, 63, 67])
def test_plain_list_is_read_where_the_enriched_one_is_not_known(code: int) -> None:
    lists = Lists(entries(3), failures={ENRICHED: code})
    assert set(templates(lists)) == names(3)
    assert lists.asked == [(ENRICHED, None, 0, 100), (PLAIN, None, 0, 100)]

    lists.failures.clear()
    assert set(templates(lists)) == names(3)
    assert lists.asked[2:] == [(ENRICHED, None, 0, 100)]


@pytest.mark.parametrize(
    ("code", "kind"), [(62, Misconfigured), (63, Misconfigured), (67, Rejected)]
)
def test_bot_without_either_list_fails(code: int, kind: type[Failure]) -> None:
    with pytest.raises(kind):
        templates(Lists([], failures={ENRICHED: code, PLAIN: code}))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(81, Misconfigured), (34, Throttled), (13, Misconfigured), (61, Transient), (21, Rejected)],
)
def test_enriched_list_that_fails_otherwise_is_no_reason_for_the_plain_one(
    code: int, kind: type[Failure]
) -> None:
    lists = Lists(entries(3), failures={ENRICHED: code})
    with pytest.raises(kind):
        templates(lists)
    assert len(lists.asked) == 1


def test_bot_without_a_channel_is_named() -> None:
    with pytest.raises(Misconfigured, match="router's key"):
        templates(Lists([], failures={ENRICHED: 81}))


# --- One template ---------------------------------------------------------------------------------


def test_one_template_is_asked_for_by_its_name() -> None:
    lists = Lists([*entries(300), entry(BODY, name="template_1", language="en")])
    found = template(lists)
    assert found is not None
    assert (found.name, found.asked_at) == ("template_1", ASKED_AT)
    assert set(found.translations) == {"pt_BR", "en"}
    assert lists.asked == [(ENRICHED, "template_1", 0, 100)]


def test_server_that_ignores_the_name_is_searched_for_it() -> None:
    more = [*entries(250), entry(BODY, name="template_1", language="en")]
    lists = Lists(more, by_name=lambda *_: True)
    found = template(lists)
    assert found is not None
    assert set(found.translations) == {"pt_BR", "en"}
    assert len(lists.asked) == 3


def test_name_that_is_part_of_others_is_found_among_them() -> None:
    lists = Lists(entries(30), by_name=lambda wanted, name: wanted in name)
    found = template(lists)
    assert found is not None
    assert found.name == "template_1"


def test_name_that_is_not_listed_is_none() -> None:
    assert template(Lists(entries(3)), "other") is None
    assert template(Lists(entries(3), by_name=lambda *_: True), "other") is None


@pytest.mark.parametrize("failures", [{ENRICHED: 67, PLAIN: 67}, {ENRICHED: 62, PLAIN: 67}])
def test_name_that_is_not_found_is_none(failures: dict[str | int, int]) -> None:
    assert template(Lists([], failures=failures)) is None


# --- Rubbish --------------------------------------------------------------------------------------


def test_entries_that_cannot_be_read_are_counted_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = templates(Lists([*entries(2), {"name": "Secret Name"}, None]))
    assert set(found) == names(2)
    (record,) = caplog.records
    assert (record.bot, record.unreadable) == ("default", 2)  # type: ignore[attr-defined]
    assert "Secret" not in caplog.text


def answered(body: bytes, status: int = 200) -> BlipClient:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    return BlipClient(1, 10, transport=transport)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"status": "success"}',
        b'{"status": "success", "resource": null}',
        b'{"status": "success", "resource": "templates"}',
        b'{"status": "success", "resource": {}}',
        b'{"status": "success", "resource": {"data": {}}}',
        b'{"status": "success", "resource": {"items": 7, "total": "many"}}',
    ],
)
def test_answer_without_a_list_is_no_answer(body: bytes) -> None:
    with pytest.raises(Transient):
        answered(body).templates(a_bot(), ASKED_AT, at_once)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Misconfigured), (429, Throttled), (500, Transient), (400, Rejected)]
)
def test_refused_question_fails(status: int, kind: type[Failure]) -> None:
    with pytest.raises(kind):
        answered(b"", status).templates(a_bot(), ASKED_AT, at_once)


RUBBISH: list[Any] = [
    *(None, True, 0, -1, 1.5, 10**40, "", "x", "{{1}}", "{{", "BODY", "CAROUSEL", "pt_BR"),
    *([], {}, [None], [[]], {"type": "BODY"}, "x" * 5000, "\ud83d\ude00", "9" * 500),
]


class Mutator:
    """Draws mutated answers from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self) -> bytes:
        cards = [{"components": [BODY]}, {"components": [BODY]}]
        buttons = [{"type": "URL", "url": "https://example.com/{{1}}"}, {"type": "OTP"}]
        components = [
            {"type": "HEADER", "format": "TEXT", "text": "{{1}}"},
            BODY,
            {"type": "BUTTONS", "buttons": buttons},
            {"type": "CAROUSEL", "cards": cards},
        ]
        resource = as_items([entry(*components), entry(BODY, name="b")], 2)
        answer: Json = json.loads(json.dumps({"status": "success", "resource": resource}))
        for _ in range(self.random.choice((1, 1, 2, 4))):
            container, key = self.random.choice(list(places(answer)))
            match self.random.randrange(4):
                case 0:
                    del container[key]
                case 1 if isinstance(container, list):
                    container.append(container[key])
                case _:
                    container[key] = json.loads(json.dumps(self.random.choice(RUBBISH)))
        text = json.dumps(answer).encode()
        return text if self.random.random() < 0.9 else text[: self.random.randrange(len(text))]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return each place inside a value, as its container and the key in it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found.extend(places(value[key]))
    return found or [({0: 0}, 0)]


def test_rubbish_raises_nothing_but_the_documented_failures() -> None:
    mutator = Mutator(981)
    read = failed = 0
    for _ in range(5000):
        body = mutator.draw()
        try:
            found = answered(body).templates(a_bot(), ASKED_AT, at_once)
        except (Rejected, Transient, Throttled, Misconfigured):
            failed += 1
            continue
        read += 1
        for name, registered in found.items():
            assert registered.name == name
            assert all(isinstance(one, Translation) for one in registered.translations.values())
    assert min(read, failed) > 500
