"""The webhook whole: HTTP API events in; answers, and receipts on their queue, out."""

import base64
import hmac
import json
import logging
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from notifier import telemetry
from notifier.aws.webhook import WebhookSecretError
from notifier.domain.notification import ledger_key
from notifier.entrypoints.receive_receipt import receive_receipt
from notifier.settings import ReceiveReceiptSettings
from tests.integration.conftest import Aws
from tests.integration.receipts_stack import SECRET, ReceiptsStack, a_receipt
from tests.support.clock import MachineClock
from tests.support.lambda_runtime import a_context, load_app, printed_metrics

KEY = ledger_key("default", "order-1")
RECEIPT = a_receipt(KEY, "received")
WAITS = {"id": KEY, "event": "received"}
OK = {"statusCode": 200}
# Of no webhook anywhere.
NEW_SECRET, NEWEST_SECRET, WRONG = "n3w-secret", "newest-secret", "wrong"


def refused(status: int, line: str) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"Content-Type": "text/plain; charset=utf-8"},
        "body": line + "\n",
    }


UNAUTHORIZED = refused(401, "the header x-receipts-secret is missing or wrong")
TOO_LARGE = refused(413, "the body is larger than 262144 bytes")
NOT_JSON = refused(400, "the body is not JSON")
NO_ENVELOPE = refused(400, "the body is not a LIME envelope with a known event and an id")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()

    def count(what: Iterable[str]) -> None:
        counted.update(map(str, what))

    monkeypatch.setattr(telemetry, "count", count)
    return counted


def fetches(aws: Aws) -> int:
    return sum(name == "GetSecretValue" for name, _ in aws.calls)


def test_receipt_is_put_on_the_queue(receipts: ReceiptsStack, counts: Counter[str]) -> None:
    assert receipts.post(RECEIPT) == OK

    assert receipts.waiting() == [WAITS]
    assert counts == {"webhook_receipt": 1}


@pytest.mark.parametrize("event", ["accepted", "dispatched", "received", "consumed", "failed"])
def test_only_the_fields_that_recording_needs_are_kept(receipts: ReceiptsStack, event: str) -> None:
    posted = a_receipt(f"fwd:{KEY}:2", event, 131026)

    assert receipts.post(posted) == OK

    (kept,) = receipts.waiting()
    assert kept == {"id": f"fwd:{KEY}:2", "event": event, "reason": posted["reason"]}


# --- The secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [
        None,
        "",
        " ",
        "wrong",
        SECRET[:-1],
        SECRET + "x",
        SECRET.upper(),
        "é",
        "\udce9",
        f"{SECRET},x",
    ],
    ids=ascii,
)
def test_wrong_secret_is_401(
    receipts: ReceiptsStack, counts: Counter[str], secret: str | None
) -> None:
    assert receipts.post(RECEIPT, secret=secret) == UNAUTHORIZED

    assert receipts.waiting() == []
    assert counts == {"webhook_unauthorized": 1}


@pytest.mark.parametrize("headers", [None, {}, {"authorization": SECRET}])
def test_missing_header_is_401(receipts: ReceiptsStack, headers: dict[str, str] | None) -> None:
    assert receipts.post(RECEIPT, headers=headers) == UNAUTHORIZED


def test_header_name_is_not_case_sensitive(receipts: ReceiptsStack) -> None:
    assert receipts.post(RECEIPT, headers={"X-Receipts-Secret": SECRET}) == OK


@pytest.mark.parametrize("body", ["[", "x" * 300_000, '{"event": "exploded"}'])
def test_unauthorised_answer_reveals_nothing_else(receipts: ReceiptsStack, body: str) -> None:
    assert receipts.post(body, secret=WRONG) == UNAUTHORIZED


def test_secret_is_compared_in_constant_time(
    receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def compare(given: bytes, secret: bytes) -> bool:
        compared.append((given, secret))
        return given == NEWEST_SECRET.encode()

    monkeypatch.setattr(hmac, "compare_digest", compare)

    # Only this comparison accepts a request.
    assert receipts.post(RECEIPT) == UNAUTHORIZED
    assert receipts.post(RECEIPT, secret=NEWEST_SECRET) == OK
    assert set(compared) == {
        (SECRET.encode(), SECRET.encode()),
        (NEWEST_SECRET.encode(), SECRET.encode()),
    }


def test_secret_is_fetched_once(receipts: ReceiptsStack, aws: Aws) -> None:
    for _ in range(20):
        receipts.post(RECEIPT)

    assert fetches(aws) == 2  # the current and the previous version


def test_both_versions_are_accepted_during_a_rotation(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    assert receipts.post(RECEIPT, secret=NEW_SECRET) == UNAUTHORIZED
    aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString=NEW_SECRET)

    # Without a deploy, and without waiting for the cache.
    clock.advance(10.1)
    assert receipts.post(RECEIPT, secret=NEW_SECRET) == OK
    assert receipts.post(RECEIPT, secret=SECRET) == OK

    aws.secrets_manager.put_secret_value(
        SecretId=receipts.webhook_secret, SecretString=NEWEST_SECRET
    )
    clock.advance(10.1)
    assert receipts.post(RECEIPT, secret=NEWEST_SECRET) == OK
    assert receipts.post(RECEIPT, secret=NEW_SECRET) == OK
    assert receipts.post(RECEIPT, secret=SECRET) == UNAUTHORIZED


def test_previous_secret_is_accepted_for_a_day_after_a_rotation(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString=NEW_SECRET)

    clock.advance(24 * 3600 - 60)
    assert receipts.post(RECEIPT, secret=SECRET) == OK

    # To the second, whatever is cached.
    clock.advance(61)
    assert receipts.post(RECEIPT, secret=SECRET) == UNAUTHORIZED
    assert receipts.post(RECEIPT, secret=NEW_SECRET) == OK


def test_revoked_secret_is_accepted_for_at_most_five_minutes(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    assert receipts.post(RECEIPT) == OK
    for secret in ("second", "third"):
        aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString=secret)

    clock.advance(290)
    assert receipts.post(RECEIPT) == OK
    clock.advance(11)
    assert receipts.post(RECEIPT) == UNAUTHORIZED


def test_guessed_secrets_cause_no_calls_to_aws(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    receipts.post(RECEIPT)

    for guess in range(100):
        clock.advance(0.5)
        assert receipts.post(RECEIPT, secret=f"guess {guess}") == UNAUTHORIZED

    # 50 seconds: two versions, every ten seconds at most.
    assert 2 < fetches(aws) <= 2 * (1 + 5)


def test_white_space_around_the_secret_is_ignored(receipts: ReceiptsStack, aws: Aws) -> None:
    aws.secrets_manager.put_secret_value(
        SecretId=receipts.webhook_secret, SecretString=f" {NEW_SECRET}\n"
    )

    assert receipts.post(RECEIPT, secret=NEW_SECRET) == OK


@pytest.mark.parametrize("given", [None, "", " "])
def test_empty_secret_accepts_no_request(
    receipts: ReceiptsStack, aws: Aws, given: str | None
) -> None:
    aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString=" ")
    aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString="\n")

    assert receipts.post(RECEIPT, secret=given) == UNAUTHORIZED


def test_receipts_are_accepted_while_secrets_manager_does_not_answer(
    receipts: ReceiptsStack,
    clock: MachineClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert receipts.post(RECEIPT) == OK
    secrets_manager = receipts.webhook._secret._secrets_manager
    with monkeypatch.context() as patched:
        patched.setattr(secrets_manager, "get_secret_value", not_available)
        clock.advance(1000)
        assert receipts.post(RECEIPT) == OK
        assert receipts.post(RECEIPT, secret=WRONG) == UNAUTHORIZED

    assert "the known value stays valid" in caplog.text
    clock.advance(1000)
    assert receipts.post(RECEIPT) == OK


def test_requests_fail_without_any_known_secret(
    receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets_manager = receipts.webhook._secret._secrets_manager
    with monkeypatch.context() as patched:
        patched.setattr(secrets_manager, "get_secret_value", not_available)
        for _ in range(2):
            with pytest.raises(ClientError):  # a 500: BLiP comes again
                receipts.post(RECEIPT)

    assert receipts.post(RECEIPT) == OK


def not_available(**_: object) -> None:
    raise ClientError({"Error": {"Code": "InternalServiceError"}}, "GetSecretValue")


# --- A secret per bot -----------------------------------------------------------------------------


def rotated(clock: MachineClock, seconds_ago: float) -> str:
    return datetime.fromtimestamp(clock.now() - seconds_ago, UTC).isoformat(timespec="seconds")


def put(aws: Aws, receipts: ReceiptsStack, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    aws.secrets_manager.put_secret_value(SecretId=receipts.webhook_secret, SecretString=text)


def test_receipt_names_the_bots_whose_secret_was_used(receipts: ReceiptsStack, aws: Aws) -> None:
    put(
        aws,
        receipts,
        {"clinic": {"current": "c"}, "shop": {"current": "s"}, "store": {"current": "s"}},
    )

    assert receipts.post(RECEIPT, secret="c") == OK  # noqa: S106
    assert receipts.waiting() == [WAITS | {"bots": ["clinic"]}]
    # Two names of one bot at BLiP.
    assert receipts.post(RECEIPT, secret="s") == OK  # noqa: S106
    assert receipts.waiting() == [WAITS | {"bots": ["shop", "store"]}]
    assert receipts.post(RECEIPT, secret=SECRET) == UNAUTHORIZED
    assert receipts.post(RECEIPT, secret=json.dumps({"clinic": {"current": "c"}})) == UNAUTHORIZED


def test_body_cannot_claim_another_bot(receipts: ReceiptsStack, aws: Aws) -> None:
    put(aws, receipts, {"clinic": {"current": "c"}})

    assert receipts.post(RECEIPT | {"bots": ["shop"]}, secret="c") == OK  # noqa: S106

    assert receipts.waiting() == [WAITS | {"bots": ["clinic"]}]


def test_rotation_of_one_bot_keeps_the_previous_secrets_of_the_others(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    hour, almost_a_day = rotated(clock, 3600), rotated(clock, 24 * 3600 - 60)
    put(
        aws,
        receipts,
        {
            "clinic": {"current": "c2", "previous": "c1", "rotated_at": hour},
            "shop": {"current": "s2", "previous": "s1", "rotated_at": almost_a_day},
        },
    )

    assert [receipts.post(RECEIPT, secret=one) for one in ("c1", "c2", "s1", "s2")] == [OK] * 4

    # To the second, whatever is cached.
    clock.advance(61)
    assert receipts.post(RECEIPT, secret="s1") == UNAUTHORIZED  # noqa: S106
    assert [receipts.post(RECEIPT, secret=one) for one in ("c1", "c2", "s2")] == [OK] * 3
    clock.advance(23 * 3600)
    assert receipts.post(RECEIPT, secret="c1") == UNAUTHORIZED  # noqa: S106
    assert [receipts.post(RECEIPT, secret=one) for one in ("c2", "s2")] == [OK] * 2


def test_secret_versions_are_ignored_if_each_bot_has_a_secret(
    receipts: ReceiptsStack, aws: Aws
) -> None:
    put(aws, receipts, {"clinic": {"current": "c2", "previous": "c1"}})  # dropped, or never dated
    put(aws, receipts, {"clinic": {"current": "c3"}})

    assert receipts.post(RECEIPT, secret="c3") == OK  # noqa: S106
    for before in (SECRET, "c1", "c2"):
        assert receipts.post(RECEIPT, secret=before) == UNAUTHORIZED
    assert fetches(aws) == 1


def test_dropped_secret_is_accepted_for_at_most_five_minutes(
    receipts: ReceiptsStack, aws: Aws, clock: MachineClock
) -> None:
    put(aws, receipts, {"clinic": {"current": "c1"}})
    assert receipts.post(RECEIPT, secret="c1") == OK  # noqa: S106
    put(aws, receipts, {"clinic": {"current": "c2"}})

    clock.advance(301)
    assert receipts.post(RECEIPT, secret="c1") == UNAUTHORIZED  # noqa: S106


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "c1",
        [],
        {},
        {"current": None},
        {"current": 5},
        {"current": " "},
        {"current": "c2", "previous": "c1"},
        {"current": "c2", "previous": "c1", "rotated_at": None},
        {"current": "c2", "previous": "c1", "rotated_at": "yesterday"},
        {"current": "c2", "previous": 5, "rotated_at": "2026-11-26T09:00:00+00:00"},
        {"current": "c2", "previous": " ", "rotated_at": "2126-11-26T09:00:00+00:00"},
    ],
    ids=str,
)
def test_invalid_entry_affects_no_other_bot(
    receipts: ReceiptsStack, aws: Aws, entry: object, caplog: pytest.LogCaptureFixture
) -> None:
    put(aws, receipts, {"shop": entry, "clinic": {"current": "c"}})

    assert receipts.post(RECEIPT, secret="c") == OK  # noqa: S106
    for given in (None, "", " ", "c1", "5", "None"):
        assert receipts.post(RECEIPT, secret=given) == UNAUTHORIZED
    if isinstance(entry, dict) and entry.get("current") == "c2":
        assert receipts.post(RECEIPT, secret="c2") == OK  # noqa: S106
    for line in caplog.records:
        assert not {"c1", "c2"} & set(map(str, vars(line).values()))


@pytest.mark.parametrize("broken", ["{", '{"clinic": {"current": "c"}', "{" * 100_000])
def test_unreadable_value_keeps_the_known_one(
    receipts: ReceiptsStack,
    aws: Aws,
    clock: MachineClock,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    put(aws, receipts, broken[:60_000])
    with pytest.raises(WebhookSecretError):  # a 500, and an alarm
        receipts.post(RECEIPT)
    put(aws, receipts, {"clinic": {"current": "c"}})
    assert receipts.post(RECEIPT, secret="c") == OK  # noqa: S106

    put(aws, receipts, broken[:60_000])
    clock.advance(301)
    assert receipts.post(RECEIPT, secret="c") == OK  # noqa: S106
    assert "the known value stays valid" in caplog.text


# --- The body -------------------------------------------------------------------------------------


def encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()


def test_body_may_be_base64(receipts: ReceiptsStack) -> None:
    assert receipts.post(encoded(json.dumps(RECEIPT).encode()), base64=True) == OK

    assert receipts.waiting() == [WAITS]


@pytest.mark.parametrize(
    "body", ["%%%", "é", "{}", encoded(b""), encoded(b"\xff\xfe"), encoded(b"no")], ids=ascii
)
def test_invalid_base64_or_json_is_400(receipts: ReceiptsStack, body: str) -> None:
    assert receipts.post(body, base64=True) == NOT_JSON
    assert receipts.waiting() == []


def padded(size: int) -> str:
    """Return a receipt of exactly so many bytes."""
    text = json.dumps(RECEIPT | {"padding": ""}, ensure_ascii=False)
    return text.replace('"padding": ""', f'"padding": "{"x" * (size - len(text))}"')


def test_body_has_at_most_256_kib(receipts: ReceiptsStack, counts: Counter[str]) -> None:
    assert len(padded(262_144)) == 262_144
    assert receipts.post(padded(262_144)) == OK
    assert receipts.post(padded(262_145)) == TOO_LARGE
    assert receipts.post("é" * 131_073) == TOO_LARGE  # bytes count, not characters
    assert receipts.post(encoded(padded(262_145).encode()), base64=True) == TOO_LARGE
    assert receipts.post("x" * 10_000_000) == TOO_LARGE
    assert receipts.post(encoded(b"x" * 10_000_000), base64=True) == TOO_LARGE

    assert receipts.waiting() == [WAITS]
    assert counts == {"webhook_receipt": 1, "webhook_too_large": 5}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no",
        "{",
        '{"event": "received"',
        "\ud800",
        "[" * 100_000,
        '{"content":' * 20_000,
        "1" * 10_000,
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_body_that_is_not_json_is_400(
    receipts: ReceiptsStack, counts: Counter[str], body: str
) -> None:
    assert receipts.post(body) == NOT_JSON

    assert receipts.waiting() == []
    assert counts == {"webhook_invalid": 1}


def test_request_without_a_body_is_400(receipts: ReceiptsStack) -> None:
    headers = {"x-receipts-secret": SECRET}

    assert receipts.webhook.handle({"headers": headers}) == NOT_JSON
    assert receipts.webhook.handle({"headers": headers, "body": None}) == NOT_JSON


@pytest.mark.parametrize(
    "body",
    [
        [],
        [RECEIPT],
        {},
        None,
        "received",
        5,
        {"event": "exploded", "id": KEY},
        {"event": ["received"], "id": KEY},
        {"event": {}, "id": KEY},
        {"event": "received"},
        {"event": "received", "id": 5},
        {"hello": "world"},
    ],
    ids=str,
)
def test_document_that_is_not_an_envelope_is_400(
    receipts: ReceiptsStack, counts: Counter[str], body: object
) -> None:
    assert receipts.post(json.dumps(body)) == NO_ENVELOPE

    assert receipts.waiting() == []
    assert counts == {"webhook_invalid": 1}


CHAT = {
    "id": "wamid.HBg",
    "from": "553199998888@wa.gw.msging.net",
    "to": "bot@msging.net",
    "type": "text/plain",
    "content": "Oi, \ud83d",  # WhatsApp cuts where it likes
}


@pytest.mark.parametrize(
    "body",
    [
        CHAT,
        CHAT | {"content": {"replied": {"type": "text/plain", "value": "SIM"}}},
        {"id": "1", "from": "bot@msging.net", "method": "get", "uri": "/ping"},
        {"state": "established"},
        {"id": KEY, "event": "deleted"},
    ],
    ids=["text", "reply", "command", "session", "deleted"],
)
def test_other_envelopes_are_answered_counted_and_dropped(
    receipts: ReceiptsStack, counts: Counter[str], body: dict[str, Any]
) -> None:
    assert receipts.post(body) == OK

    assert receipts.waiting() == []
    assert counts == {"webhook_not_a_receipt": 1}


def test_receipts_of_other_messages_are_answered_counted_and_dropped(
    receipts: ReceiptsStack, counts: Counter[str]
) -> None:
    assert receipts.post(a_receipt("1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b", "received")) == OK

    assert receipts.waiting() == []
    assert counts == {"webhook_foreign": 1}


# --- Nothing lost, nothing let in -----------------------------------------------------------------


def test_burst_loses_no_receipt_and_accepts_no_wrong_secret(
    receipts: ReceiptsStack, counts: Counter[str]
) -> None:
    settings = ReceiveReceiptSettings(receipts.queue_url, receipts.webhook_secret)
    sandboxes = [receive_receipt(settings) for _ in range(4)]
    ours = [ledger_key("default", f"order-{number}") for number in range(100)]

    for number, key in enumerate(ours):
        receipts.webhook = sandboxes[number % 4]
        assert receipts.post(a_receipt(key, "received")) == OK
        assert receipts.post(a_receipt(key, "failed"), secret=f"guess {key}") == UNAUTHORIZED
        assert receipts.post(CHAT) == OK

    assert sorted(receipt["id"] for receipt in receipts.waiting()) == sorted(ours)
    assert counts == {
        "webhook_receipt": 100,
        "webhook_unauthorized": 100,
        "webhook_not_a_receipt": 100,
    }


def test_function_waits_only_for_its_queue(receipts: ReceiptsStack, aws: Aws) -> None:
    aws.calls.clear()
    receipts.post(RECEIPT)
    receipts.post(CHAT)
    receipts.post(RECEIPT, secret=WRONG)
    receipts.post("no")

    assert [name for name, _ in aws.calls] == ["GetSecretValue", "GetSecretValue", "SendMessage"]


def test_receipt_that_cannot_be_enqueued_is_not_acknowledged(
    receipts: ReceiptsStack, aws: Aws
) -> None:
    aws.sqs.delete_queue(QueueUrl=receipts.queue_url)

    with pytest.raises(ClientError):  # a 500: BLiP comes again
        receipts.post(RECEIPT)


def test_no_log_holds_a_secret_a_number_or_a_body(
    receipts: ReceiptsStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="notifier")
    for secret in (SECRET, "a-wrong-guess"):
        for body in (RECEIPT, CHAT, {"event": "exploded", "from": "5531999998888"}, "no, 5531999"):
            receipts.post(body, secret=secret)

    lines = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert len(lines) == 6
    for line in lines:
        for private in (SECRET, "a-wrong-guess", "5531", "Oi", "exploded"):
            assert private not in line


def test_handler_runs_as_lambda_calls_it(
    receipts: ReceiptsStack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECEIPTS_QUEUE_URL", receipts.queue_url)
    monkeypatch.setenv("WEBHOOK_SECRET_ARN", receipts.webhook_secret)
    handler = load_app("receive_receipt")["handler"]
    event = {"headers": {"x-receipts-secret": SECRET}, "body": json.dumps(RECEIPT)}

    assert handler(event, a_context()) == OK

    (metrics,) = printed_metrics(capsys.readouterr().out)
    assert metrics["webhook_receipt"] == [1.0]
    assert receipts.waiting() == [WAITS]
