"""The operator's commands about one notification and one person, with made-up functions."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from functions import __main__ as commands

type Json = dict[str, Any]


@dataclass
class MadeUpStack:
    """Gives these answers, one per invocation."""

    answers: list[Json]
    invoked: list[tuple[str, Json]] = field(default_factory=list)

    def invoke(self, function: str, event: Json) -> Json:
        self.invoked.append((function, event))
        return self.answers.pop(0)


def run(stack: MadeUpStack, *arguments: str) -> int:
    options = commands._parser().parse_args(arguments)
    return int(options.run(cast("commands.Stack", stack), options))


ANSWER = {
    "id": "order-1",
    "bot": "clinic",
    "status": "failed",
    "reason": "undelivered",
    "code": 131026,
    "template": "order_shipped",
    "recipient": None,
    "metadata": {"order": "981"},
    "timeline": [
        {"status": "sent", "generation": 1, "time": "2026-11-24T18:00:00.000+00:00"},
        {"status": "failed", "generation": 1, "time": "2026-11-24T18:00:09.000+00:00"},
    ],
}


@pytest.mark.parametrize(("command", "method"), [("notification", "GET"), ("cancel", "DELETE")])
def test_the_function_is_asked_as_the_api_asks_it(
    command: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = MadeUpStack([{"statusCode": 200, "body": json.dumps(ANSWER)}])

    assert run(stack, command, "order-1", "--bot", "clinic") == 0

    [(function, event)] = stack.invoked
    assert function == "GetNotificationFunction"
    assert event["rawPath"] == "/notifications/order-1"
    assert event["queryStringParameters"] == {"bot": "clinic"}
    assert event["requestContext"]["http"]["method"] == method
    shown = capsys.readouterr().out
    for text in ("order_shipped", "undelivered", "131026", "metadata order", "18:00:09"):
        assert text in shown
    assert "recipient" not in shown


def test_the_answer_can_be_had_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    stack = MadeUpStack([{"statusCode": 200, "body": json.dumps(ANSWER)}])

    assert run(stack, "notification", "order-1", "--json") == 0

    assert json.loads(capsys.readouterr().out) == ANSWER


def test_a_refusal_is_one_line() -> None:
    stack = MadeUpStack([{"statusCode": 404, "body": "bot default has no notification a\n"}])

    with pytest.raises(commands.CommandError, match=r"^bot default has no notification a$"):
        run(stack, "notification", "a")


def an_answer(found: int, erased: int, continue_from: str | None, possible: int = 0) -> Json:
    return {
        "scanned": 100,
        "possible": possible,
        "found": {"notifications": found, "identities": 0, "dead_letters": 0},
        "erased": {"notifications": erased, "identities": 0, "dead_letters": 0},
        "continue_from": continue_from,
    }


def test_forgetting_goes_on_until_everything_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TO", "+5531999998888")
    stack = MadeUpStack(
        [an_answer(1, 1, "a-key"), an_answer(2, 2, "letters", possible=3), an_answer(0, 0, None)]
    )

    assert run(stack, "forget", "--yes") == 0

    order = {"to": "+5531999998888", "dry_run": False}
    assert [event for _, event in stack.invoked] == [
        order,
        order | {"continue_from": "a-key"},
        order | {"continue_from": "letters"},
    ]
    shown = capsys.readouterr()
    assert ["notifications", "3", "3"] in [line.split() for line in shown.out.splitlines()]
    assert "300 notifications and dead letters" in shown.out
    assert "3 delivered ones" in shown.out
    assert "99998888" not in shown.out + shown.err


def test_forgetting_is_a_dry_run_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TO", "+5531999998888")
    stack = MadeUpStack([an_answer(1, 0, None)])

    assert run(stack, "forget") == 0

    assert stack.invoked[0][1]["dry_run"] is True
    assert "Nothing was erased" in capsys.readouterr().out


def test_what_could_not_be_erased_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TO", "+5531999998888")

    assert run(MadeUpStack([an_answer(2, 1, None)]), "forget", "--yes") == 1


def test_forgetting_wants_to_know_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TO", raising=False)

    with pytest.raises(commands.CommandError, match="which number"):
        run(MadeUpStack([]), "forget")


def test_every_command_is_a_target_of_make() -> None:
    makefile = (commands.ROOT / "Makefile").read_text(encoding="utf-8")

    for command in commands.COMMANDS:
        assert f"\n{command}: " in makefile
