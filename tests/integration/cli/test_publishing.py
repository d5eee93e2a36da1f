"""`publish`, over moto."""

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from functions.cli import publishing
from functions.cli.errors import CommandError
from functions.cli.publishing import publish, read
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Stack
from tests.support.builders import a_request


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing; return how long it would have been."""
    waited: list[float] = []
    monkeypatch.setattr("functions.cli.publishing.time.sleep", waited.append)
    return waited


def sent(stack: Stack) -> list[list[dict[str, Any]]]:
    return [call["Entries"] for name, call in stack.aws.calls if name == "SendMessageBatch"]


def lines(folder: Path, *requests: object) -> Path:
    file = folder / "requests.jsonl"
    file.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
    return file


def test_requests_are_published_as_they_stand_in_the_group_of_their_bot(
    stack: Stack, tmp_path: Path
) -> None:
    one = tmp_path / "one.json"
    one.write_text('{"id":\n "order-1"}\n')
    several = lines(tmp_path, a_request(bot="clinic"), "not JSON")

    published = publish(Deployed(stack.aws), read([one, several]))

    assert all(each.record_id for each in published)
    assert [each.message.source for each in published] == [
        str(one),
        f"{several}:1",
        f"{several}:2",
    ]
    ((first, second, third),) = sent(stack)
    assert first["MessageBody"] == '{"id":\n "order-1"}\n'
    assert third["MessageBody"] == '"not JSON"'
    groups = [entry["MessageGroupId"] for entry in (first, second, third)]
    assert groups == ["default", "clinic", "default"]
    assert len(stack.receive()) == 3


def test_line_separators_of_unicode_do_not_split_a_request(tmp_path: Path) -> None:
    request = a_request(metadata={"note": "two\u2028lines\x85"})
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(request, ensure_ascii=False)}\n\n")

    (message,) = read([file])

    assert json.loads(message.body) == request


def test_requests_are_published_in_batches_of_ten_within_the_size_that_sqs_takes(
    stack: Stack, tmp_path: Path
) -> None:
    many = lines(tmp_path, *(a_request() for _ in range(23)))
    large = tmp_path / "large.jsonl"
    large.write_text("".join(f'"{"x" * 250_000}"\n' for _ in range(6)))
    counts: list[int] = []

    publish(Deployed(stack.aws), read([many]), counts.append)
    publish(Deployed(stack.aws), read([large]))

    assert counts == [10, 20, 23]
    assert [len(batch) for batch in sent(stack)] == [10, 10, 3, 4, 2]


@pytest.fixture
def refusals(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Have SQS refuse these positions, one set per call; negative ones for good."""
    planned: list[set[int]] = []
    client = stack.aws.sqs
    answer = client.send_message_batch

    def refuse(**asked: Any) -> Any:
        refused = planned.pop(0) if planned else set()
        failed = [
            {"Id": str(abs(one)), "Code": "Busy", "Message": "busy", "SenderFault": one < 0}
            for one in refused
        ]
        ids = {one["Id"] for one in failed}
        asked["Entries"] = [entry for entry in asked["Entries"] if entry["Id"] not in ids]
        taken = answer(**asked)["Successful"] if asked["Entries"] else []
        return {"Successful": taken, "Failed": failed}

    monkeypatch.setattr(client, "send_message_batch", refuse)
    monkeypatch.setattr(Deployed, "client", lambda *_: client)
    return planned


def test_requests_that_sqs_refuses_for_now_are_published_again(
    stack: Stack, tmp_path: Path, refusals: list[set[int]], waits: list[float]
) -> None:
    refusals += [{1, 2}, {2}]

    published = publish(
        Deployed(stack.aws), read([lines(tmp_path, *(a_request() for _ in range(4)))])
    )

    assert all(each.record_id and not each.refusal for each in published)
    assert len(stack.receive()) == 4
    assert waits == [0.2, 0.4]


def test_requests_that_sqs_goes_on_refusing_are_named(
    stack: Stack, tmp_path: Path, refusals: list[set[int]]
) -> None:
    refusals += [{1}] * 99
    file = lines(tmp_path, a_request(), a_request())

    first, second = publish(Deployed(stack.aws), read([file]))

    assert (first.refusal, second.refusal, second.record_id) == (None, "busy", None)
    assert len(refusals) == 99 - publishing.TRIES


def test_requests_that_sqs_never_takes_are_not_published_again(
    stack: Stack, tmp_path: Path, refusals: list[set[int]], waits: list[float]
) -> None:
    refusals += [{-1}]

    _, second = publish(Deployed(stack.aws), read([lines(tmp_path, a_request(), a_request())]))

    assert second.refusal == "busy"
    assert waits == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "Send"), "no"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_publishing_that_breaks_off_says_how_many_were_published(
    stack: Stack, tmp_path: Path, error: BaseException, told: str
) -> None:
    file = lines(tmp_path, *(a_request() for _ in range(11)))

    with pytest.MonkeyPatch.context() as patched:
        answer = stack.aws.sqs.send_message_batch
        calls = iter([answer])

        def send(**asked: Any) -> Any:
            call = next(calls, None)
            if call is None:
                raise error
            return call(**asked)

        patched.setattr(stack.aws.sqs, "send_message_batch", send)
        patched.setattr(Deployed, "client", lambda *_: stack.aws.sqs)
        with pytest.raises(CommandError, match=rf"{told}\. 10 of 11 were published: publish"):
            publish(Deployed(stack.aws), read([file]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff{}", "is not UTF-8"),
    ],
)
def test_file_that_cannot_be_published_is_named(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "one.json"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(CommandError, match=f"{problem}.*") as caught:
        read([file])

    assert "one.json" in str(caught.value)
