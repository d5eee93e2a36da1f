"""`forget`: the number that is asked for, and what a person reads."""

import io
import json
from typing import Any

import pytest

from tests.unit.cli.conftest import MadeUpStack, Run

type Json = dict[str, Any]

NUMBER = "+5531999998888"


@pytest.fixture(autouse=True)
def standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NUMBER}\n"))


def an_answer(found: int, erased: int, continue_from: str | None, possible: int = 0) -> Json:
    return {
        "scanned": 100,
        "possible": possible,
        "found": {"notifications": found, "identities": 0, "dead_letters": 0},
        "erased": {"notifications": erased, "identities": 0, "dead_letters": 0},
        "continue_from": continue_from,
    }


def test_forget_continues_until_everything_was_scanned(stack: MadeUpStack, run: Run) -> None:
    stack.answers = [
        an_answer(1, 1, "a-key"),
        an_answer(2, 2, "letters", possible=3),
        an_answer(0, 0, None),
    ]

    code, shown = run("forget", "--yes")

    assert code == 0
    order = {"to": NUMBER, "dry_run": False}
    assert [event for _, event in stack.invoked] == [
        order,
        order | {"continue_from": "a-key"},
        order | {"continue_from": "letters"},
    ]
    assert "notifications 3 3" in shown
    assert "300 notifications and dead letters were scanned" in shown
    assert "3 delivered ones" in shown
    assert "99998888" not in shown


def test_forget_without_yes_erases_nothing(stack: MadeUpStack, run: Run) -> None:
    stack.answers = [an_answer(1, 0, None)]

    code, shown = run("forget")

    assert code == 0
    assert stack.invoked[0][1]["dry_run"] is True
    assert "Nothing was erased: this was a dry run. To erase: make forget" in shown


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_forget_fails_if_it_could_not_erase_everything(
    stack: MadeUpStack, run: Run, arguments: list[str]
) -> None:
    stack.answers = [an_answer(2, 1, None)]

    assert run("forget", "--yes", *arguments)[0] == 1


def test_forget_prints_its_answer_as_json(stack: MadeUpStack, run: Run) -> None:
    stack.answers = [an_answer(1, 0, None)]

    _, shown = run("forget", "--json")

    assert json.loads(shown) == {
        name: fact for name, fact in an_answer(1, 0, None).items() if name != "continue_from"
    }


def test_forget_without_a_number_invokes_nothing(
    stack: MadeUpStack, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))

    code, shown = run("forget", "--yes")

    assert (code, stack.invoked) == (1, [])
    assert "error: no number was given" in shown
