"""`failures` and `redrive`: what a person types and reads."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from functions.cli import __main__ as command_line
from functions.cli import dead_letters
from notifier.use_cases.redrive_failures.orders import ListOrder, RedriveOrder
from tests.unit.cli.conftest import Run


@dataclass
class Letters:
    """Stands in for the redrive: notes what it is asked, and answers what the test has set."""

    answer: dict[str, Any] = field(default_factory=dict)
    orders: list[ListOrder] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def redrive(self, stack: Any, order: ListOrder, progress: Callable[[int, int], None]) -> Any:
        assert stack.name == "blip-notifier"
        self.orders.append(order)
        for numbers in self.progress:
            progress(*numbers)
        return SimpleNamespace(as_json=lambda: self.answer)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    letters = Letters(answer())
    monkeypatch.setattr(dead_letters, "redrive", letters.redrive)
    return letters


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


def group(outcome: str = "listed", **changes: Any) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "reason": "undelivered",
        "bot": "default",
        "template": "order_shipped",
        "why": None,
        "count": 3,
        "oldest": ago(days=3, hours=1),
        "newest": ago(minutes=5),
    } | changes


def answer(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = {"scanned": sum(each["count"] for each in groups), "in_flight": 0, "more": False}
    return found | {"groups": list(groups)} | changes


# --- failures -------------------------------------------------------------------------------------


def test_failures_are_shown_by_reason_bot_and_template(letters: Letters, run: Run) -> None:
    letters.answer = answer(
        group(), group(reason="malformed", bot=None, template=None, count=1), in_flight=7
    )

    code, text = run("failures")

    assert code == 0
    assert "reason bot template count oldest newest" in text
    assert "undelivered default order_shipped 3 3d ago 5m ago" in text
    assert "malformed - - 1" in text
    assert "4 of 4 dead letters; about 7 more were in flight, in another run" in text
    assert letters.orders == [ListOrder()]


@pytest.mark.usefixtures("letters")
def test_without_dead_letters_failures_prints_no_table(run: Run) -> None:
    assert run("failures") == (0, "0 of 0 dead letters ")


LETTER = {
    "outcome": "listed",
    "why": None,
    "id": "order-1",
    "bot": "default",
    "template": "order_shipped",
    "reason": "undelivered",
    "code": 132_001,
    "detail": "the template [pt_BR] is unknown",
    "failed_at": "2026-11-24T19:24:02Z",
    "generation": 2,
    "redrives": 1,
}


def test_each_shows_every_dead_letter(letters: Letters, run: Run) -> None:
    letters.answer = answer(group(), dead_letters=[LETTER, LETTER])

    _, text = run("failures", "--each")

    row = (
        "order-1 default order_shipped undelivered 132001 the template [pt_BR] is unknown"
        " 2026-11-24T19:24:02Z 2 1"
    )
    assert text.count(row) == 2
    assert letters.orders == [ListOrder(each=True)]


def test_failures_are_printed_as_json(letters: Letters, run: Run) -> None:
    found = answer(group())
    letters.answer = found

    code, text = run("failures", "--json")

    assert (code, json.loads(text)) == (0, found)


FILTERS = ["--reason", "undelivered", "rejected", "--bot", "clinic", "--template", "other"]
FILTERS += ["--id", "a", "--id", "b", "c", "--older-than", "90m", "--newer-than", "2d"]
FILTERED: dict[str, Any] = {
    "reasons": ["undelivered", "rejected"],
    "bot": "clinic",
    "template": "other",
    "ids": ["a", "b", "c"],
    "minimum_age_seconds": 5400,
    "maximum_age_seconds": 172_800,
    "each": False,
}


def test_filters_choose_dead_letters(letters: Letters, run: Run) -> None:
    run("failures", *FILTERS)
    run("redrive", *FILTERS)

    assert letters.orders == [ListOrder(**FILTERED), RedriveOrder(**FILTERED)]


@pytest.mark.parametrize("age", ["2", "h", "-1h", "1.5h", "2w", "1h30m", ""])
def test_text_that_is_no_age_is_refused(age: str, run: Run) -> None:
    code, text = run("failures", f"--older-than={age}")

    assert code == 2
    assert f"error: --older-than: {age!r} is no age: write it as in 90s, 30m, 2h or 3d" in text


# --- redrive --------------------------------------------------------------------------------------


def test_redrive_without_execute_says_that_nothing_was_put_back(letters: Letters, run: Run) -> None:
    refused = group("refused", reason="expired", count=2, why="it has expired")
    letters.answer = answer(group("would_redrive"), refused)

    code, text = run("redrive")

    assert code == 0
    assert "would go undelivered default order_shipped 3 3d ago 5m ago -" in text
    assert "refused expired default order_shipped 2 3d ago 5m ago it has expired" in text
    assert "would go: 3 of 5 dead letters" in text
    assert "Nothing was put back: this was a dry run. --execute puts them back." in text


def test_redrive_shows_what_was_put_back(letters: Letters, run: Run) -> None:
    letter = LETTER | {"outcome": "redriven"}
    letters.answer = answer(group("redriven"), dead_letters=[letter])

    code, text = run("redrive", "--execute", "--force", "--each")

    assert code == 0
    assert "put back undelivered default order_shipped 3" in text
    assert re.search("order-1 default .* put back -", text)
    assert "put back: 3 of 3 dead letters" in text
    assert "dry run" not in text
    assert letters.orders == [RedriveOrder(dry_run=False, force=True, each=True)]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_redrive_fails_if_sqs_did_not_take_a_letter(
    letters: Letters, run: Run, arguments: list[str]
) -> None:
    letters.answer = answer(group("redriven"), group("not_taken", count=1))

    assert run("redrive", "--execute", *arguments)[0] == 1


def test_redrive_passes_its_limit_on(letters: Letters, run: Run) -> None:
    run("redrive", "--limit", "20")

    assert letters.orders == [RedriveOrder(limit=20)]


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "2.5"], ["--reason", "old"]])
def test_redrive_refuses_options_that_it_does_not_understand(
    letters: Letters, run: Run, arguments: list[str]
) -> None:
    assert run("redrive", "--execute", *arguments)[0] == 2

    assert letters.orders == []


def test_long_run_shows_its_progress_on_standard_error(
    letters: Letters, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    letters.progress = [(1000, 2000), (2000, 2000)]
    command_line.main(["failures", "--json"])

    captured = capsys.readouterr()
    assert json.loads(captured.out) == letters.answer
    assert captured.err == "\r1000 of about 2000 scanned\r2000 of about 2000 scanned\n"
    letters.progress = [(10, 20)]
    assert "scanned" not in run("failures")[1]


def test_letters_beyond_what_one_run_can_scan_are_mentioned(letters: Letters, run: Run) -> None:
    letters.answer = answer(group(), more=True)

    assert "there are more than one run can scan" in run("failures")[1]


def test_refusal_of_sqs_is_shown_in_a_line(run: Run) -> None:
    facts = {"error": "ClientError", "operation": "SendMessageBatch", "code": "AccessDenied"}

    def refused(*_: object) -> Any:
        logging.getLogger("notifier.aws.queues").error("dead letters not put back", extra=facts)
        return SimpleNamespace(as_json=lambda: answer(group("not_taken")))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dead_letters, "redrive", refused)
        code, text = run("redrive", "--execute")

    assert code == 1
    assert "dead letters not put back: ClientError SendMessageBatch AccessDenied" in text
