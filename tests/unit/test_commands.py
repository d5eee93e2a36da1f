"""The operator's commands: what they ask of SAM CLI, and what a person reads."""

import json
import logging
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from functions import __main__ as commands
from functions import operations
from notifier.use_cases.redrive_failures import ListOrder, RedriveOrder
from tests.local import aws as local_aws
from tests.local import stack as local

# A SAM CLI that notes what it is asked, and answers what the test has written down.
SAM = """#!{python}
import json, os, pathlib, sys
folder = pathlib.Path({folder!r})
calls = sorted(folder.glob("call-*"))
(folder / f"call-{{len(calls)}}").write_text(json.dumps(
    {{"arguments": sys.argv[1:], "environment": dict(os.environ), "event": json.load(sys.stdin)}}))
answer = json.loads((folder / f"answer-{{len(calls)}}").read_text())
print(answer["stdout"])
print(answer.get("stderr", ""), file=sys.stderr)
sys.exit(answer.get("code", 0))
"""


@dataclass
class Sam:
    """Stands in for SAM CLI, in a process of its own."""

    folder: Path
    answers: int = 0

    def answers_with(self, payload: Any, **response: Any) -> None:
        self.says(json.dumps({"StatusCode": 200, "Payload": json.dumps(payload)} | response))

    def says(self, stdout: str, stderr: str = "", code: int = 0) -> None:
        answer = {"stdout": stdout, "stderr": stderr, "code": code}
        (self.folder / f"answer-{self.answers}").write_text(json.dumps(answer))
        self.answers += 1

    @property
    def calls(self) -> list[Any]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("call-*"))]

    @property
    def events(self) -> list[Any]:
        return [call["event"] for call in self.calls]


@pytest.fixture
def sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sam:
    program = tmp_path / "sam"
    program.write_text(SAM.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(commands, "SAM", str(program))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    return Sam(tmp_path)


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
    monkeypatch.setattr(operations, "redrive", letters.redrive)
    return letters


type Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; its exit code, and what it printed with white space as single spaces."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(commands, "console", Console(width=200))
        code = commands.main(list(arguments))
        captured = capsys.readouterr()
        return code, re.sub(r"\s+", " ", captured.out + captured.err)

    return run


def ago(**time: float) -> str:
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


def group(fate: str = "listed", **changes: Any) -> dict[str, Any]:
    return {
        "fate": fate,
        "reason": "undelivered",
        "bot": "default",
        "template": "order_shipped",
        "why": None,
        "count": 3,
        "oldest": ago(days=3, hours=1),
        "newest": ago(minutes=5),
    } | changes


def answer(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    found = {"scanned": sum(each["count"] for each in groups), "hidden": 0, "more": False}
    return found | {"groups": list(groups)} | changes


# --- Which stack ----------------------------------------------------------------------------------


def test_the_local_stack_is_asked_for_where_make_run_keeps_it() -> None:
    assert commands.LOCAL_STACK == local.STACK
    assert commands.LOCAL_PORT == local.DEFAULT_PORT_BASE
    assert commands.LOCAL_REGION == local_aws.REGION


def test_without_a_stack_no_account_can_be_reached(
    sam: Sam, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a real one")
    sam.answers_with({"statusCode": 200, "body": "{}"})

    assert run("notification", "order-1", "--json", "--port-base", "4600")[0] == 0

    (call,) = sam.calls
    assert call["arguments"] == [
        *("remote", "invoke", "GetNotificationFunction"),
        *("--stack-name", "blip-notifier", "--region", "us-east-1"),
        *("--event-file", "-", "--output", "json", "--parameter", "Qualifier=live"),
    ]
    environment = {k: v for k, v in call["environment"].items() if k.startswith("AWS_")}
    assert environment == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:4600",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    assert call["environment"]["NO_PROXY"] == "127.0.0.1"


def test_a_deployed_stack_is_reached_as_sam_reaches_it(
    sam: Sam, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[profile on-call]\nregion = sa-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    sam.answers_with({"statusCode": 200, "body": "{}"})

    run(
        "notification",
        "order-1",
        "--json",
        "--stack",
        "blip-notifier-dev",
        "--profile",
        "on-call",
        "--region",
        "sa-east-1",
    )

    (call,) = sam.calls
    assert call["arguments"][3:9] == [
        *("--stack-name", "blip-notifier-dev", "--profile", "on-call", "--region", "sa-east-1"),
    ]
    assert call["environment"]["AWS_CONFIG_FILE"] == str(config)
    assert "AWS_ENDPOINT_URL" not in call["environment"]


def test_the_region_may_be_said_as_to_the_aws_cli(
    sam: Sam, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "sa-east-1")
    sam.answers_with({"statusCode": 200, "body": "{}"})

    run("notification", "order-1", "--json", "--stack", "blip-notifier-dev")

    assert sam.calls[0]["arguments"][3:7] == [
        *("--stack-name", "blip-notifier-dev", "--region", "sa-east-1"),
    ]


def test_what_goes_wrong_is_said_in_a_sentence(sam: Sam, run: Run) -> None:
    sam.says("", "Reading event from stdin\nError: Stack 'x' does not exist", 1)
    sam.says("", 'Error: Could not connect to the endpoint URL: "http://127.0.0.1:4566/"', 1)
    sam.answers_with({"errorType": "Timeout", "errorMessage": "50 s"}, FunctionError="Unhandled")
    sam.answers_with({"error": "to: no number"})

    assert [run("notification", "order-1", "--json") for _ in range(4)] == [
        (1, "error: GetNotificationFunction cannot be invoked: Stack 'x' does not exist "),
        (
            1,
            "error: GetNotificationFunction cannot be invoked: Could not connect to the endpoint"
            ' URL: "http://127.0.0.1:4566/": start it with `make run`, or name one with --stack ',
        ),
        (1, "error: GetNotificationFunction failed: Timeout: 50 s "),
        (1, "error: to: no number "),
    ]


# --- failures -------------------------------------------------------------------------------------


def test_failures_are_shown_by_reason_bot_and_template(letters: Letters, run: Run) -> None:
    letters.answer = answer(
        group(), group(reason="malformed", bot=None, template=None, count=1), hidden=7
    )

    code, text = run("failures")

    assert code == 0
    assert "reason bot template count oldest newest" in text
    assert "undelivered default order_shipped 3 3d ago 5m ago" in text
    assert "malformed - - 1" in text
    assert "4 of 4 dead letters; about 7 more were being looked at by somebody else" in text
    assert letters.orders == [ListOrder()]


@pytest.mark.usefixtures("letters")
def test_no_failures_are_no_table(run: Run) -> None:
    assert run("failures") == (0, "0 of 0 dead letters ")


LETTER = {
    "fate": "listed",
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


def test_each_letter_is_shown_if_asked_for(letters: Letters, run: Run) -> None:
    letters.answer = answer(group(), letters=[LETTER, LETTER])

    _, text = run("failures", "--each")

    row = (
        "order-1 default order_shipped undelivered 132001 the template [pt_BR] is unknown"
        " 2026-11-24T19:24:02Z 2 1"
    )
    assert text.count(row) == 2
    assert letters.orders == [ListOrder(each=True)]


def test_the_answer_can_be_had_as_json(letters: Letters, run: Run) -> None:
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


def test_filters_choose_letters(letters: Letters, run: Run) -> None:
    run("failures", *FILTERS)
    run("redrive", *FILTERS)

    assert letters.orders == [ListOrder(**FILTERED), RedriveOrder(**FILTERED)]


@pytest.mark.parametrize("age", ["2", "h", "-1h", "1.5h", "2w", "1h30m", ""])
def test_an_age_that_is_none_is_refused(
    age: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("failures", f"--older-than={age}")

    assert "is no age: write it as in 90s, 30m, 2h or 3d" in capsys.readouterr().err


# --- redrive --------------------------------------------------------------------------------------


def test_a_dry_run_says_that_it_is_one(letters: Letters, run: Run) -> None:
    refused = group("refused", reason="expired", count=2, why="it has expired")
    letters.answer = answer(group("would_redrive"), refused)

    code, text = run("redrive")

    assert code == 0
    assert "would go undelivered default order_shipped 3 3d ago 5m ago -" in text
    assert "refused expired default order_shipped 2 3d ago 5m ago it has expired" in text
    assert "would go: 3 of 5 dead letters" in text
    assert "Nothing was put back: this was a dry run. --execute puts them back." in text


def test_what_was_put_back_is_shown(letters: Letters, run: Run) -> None:
    letter = LETTER | {"fate": "redriven"}
    letters.answer = answer(group("redriven"), letters=[letter])

    code, text = run("redrive", "--execute", "--force", "--each")

    assert code == 0
    assert "put back undelivered default order_shipped 3" in text
    assert "put back order-1 default" in text
    assert "put back: 3 of 3 dead letters" in text
    assert "dry run" not in text
    assert letters.orders == [RedriveOrder(dry_run=False, force=True, each=True)]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_what_sqs_did_not_take_is_a_failure_of_the_command(
    letters: Letters, run: Run, arguments: list[str]
) -> None:
    letters.answer = answer(group("redriven"), group("not_taken", count=1))

    assert run("redrive", "--execute", *arguments)[0] == 1


def test_a_limit_is_kept(letters: Letters, run: Run) -> None:
    run("redrive", "--limit", "20")

    assert letters.orders == [RedriveOrder(limit=20)]


@pytest.mark.parametrize("arguments", [["--limit", "0"], ["--limit", "2.5"], ["--reason", "old"]])
def test_an_order_that_cannot_be_understood_is_refused(
    letters: Letters, run: Run, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit):
        run("redrive", "--execute", *arguments)

    assert letters.orders == []


def test_a_long_run_tells_how_far_it_is_beside_the_answer(
    letters: Letters, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    letters.progress = [(1000, 2000), (2000, 2000)]
    commands.main(["failures", "--json"])

    captured = capsys.readouterr()
    assert json.loads(captured.out) == letters.answer
    assert captured.err == "\r1000 of about 2000 looked at\r2000 of about 2000 looked at\n"
    letters.progress = [(10, 20)]
    assert "looked at" not in run("failures")[1]


def test_more_than_one_run_can_look_at_is_said(letters: Letters, run: Run) -> None:
    letters.answer = answer(group(), more=True)

    assert "there are more than can be looked at in one run" in run("failures")[1]


def test_publishing_again_tells_how_far_it_is_and_where_to_continue(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, str | None]] = []

    def republish(_: Any, since: float, after: str | None) -> Iterator[operations.Republished]:
        asked.append((since, after))
        yield operations.Republished(100, 230, (), "key-100")
        yield operations.Republished(150, 340, ("key-120",))

    monkeypatch.setattr(operations, "republish", republish)

    code, text = run("republish", "2026-11-26T00:00:00Z")

    assert "100 items looked at, 230 events published; FROM=key-100" in text
    assert "340 status events of 150 ledger items were published again" in text
    assert "not publishable: key-120" in text
    assert code == 1
    run("republish", "2026-11-25T21:00:00-03:00", "--from", "key-100")
    assert asked == [(1_795_651_200.0, None), (1_795_651_200.0, "key-100")]


@pytest.mark.parametrize("since", ["", "yesterday", "2026-11-26", "2026-11-26T00:00:00"])
def test_a_time_that_is_none_or_has_no_zone_is_refused(
    run: Run, since: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("republish", since)

    assert "write it as 2026-11-26T00:00:00Z" in capsys.readouterr().err


def test_what_aws_refuses_is_said_in_a_line(run: Run) -> None:
    facts = {"error": "ClientError", "operation": "SendMessageBatch", "code": "AccessDenied"}

    def refused(*_: object) -> Any:
        logging.getLogger("notifier.aws.queues").error("letters not put back", extra=facts)
        return SimpleNamespace(as_json=lambda: answer(group("not_taken")))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(operations, "redrive", refused)
        code, text = run("redrive", "--execute")

    assert code == 1
    assert "letters not put back: ClientError SendMessageBatch AccessDenied" in text


# --- rotate-webhook -------------------------------------------------------------------------------


def rotation(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Have the next rotation come to this."""
    values: dict[str, Any] = {
        "bots": ["clinic"],
        "secret": "5ecre7" * 10,
        "previous_until": datetime(2026, 11, 27, 9, 0, tzinfo=UTC),
        "others_with_the_old_one": ["shop"],
    }

    def rotate(stack: Any, bot: str, *, leaked: bool) -> operations.Rotation:
        assert (stack.name, bot) == ("blip-notifier", "clinic")
        assert leaked == (values["previous_until"] is None)
        return operations.Rotation(**values)

    values |= changes
    monkeypatch.setattr(operations, "rotate_webhook", rotate)


def test_a_rotation_says_what_to_enter_and_until_when(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation(monkeypatch)

    assert run("rotate-webhook", "clinic") == (
        0,
        "Enter in BLiP's portal, as header of clinic; the one before counts until"
        f" 2026-11-27T09:00:00Z: X-Receipts-Secret: {'5ecre7' * 10} ",
    )


def test_a_leak_says_what_is_refused_and_where_else_it_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotation(monkeypatch, bots=["clinic", "clinic-vip"], previous_until=None)

    code, text = run("rotate-webhook", "clinic", "--leaked")

    assert code == 0
    assert "as header of clinic and clinic-vip; it counts at once" in text
    assert "The one before is refused within five minutes" in text
    assert "It still lets others in, rotate them as well: shop" in text
