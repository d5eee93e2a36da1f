"""The operator's commands on tables and secret, over moto and the simulator."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer

from functions.operations import (
    OperationError,
    Republished,
    Rotation,
    check_bot,
    pause,
    publish,
    republish,
    restore_ledger,
    resume,
    rotate_webhook,
)
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.events import EventBridgeStatusEvents
from notifier.aws.table import Table
from notifier.domain.bots import Bot as KnownBot
from notifier.domain.notification import ledger_key
from notifier.domain.status_events import Publication
from notifier.entrypoints.environment import SystemClock
from tests.integration.conftest import Aws, Stack, a_request
from tests.integration.receipts_stack import SECRET, ReceiptsStack, SimulatedClock, a_receipt
from tests.local.blip import Bot, Simulator


@dataclass
class Deployed:
    """The resources of a stack, as CloudFormation would name them."""

    aws: Aws
    webhook_secret: str = ""
    all_receipts: str = "false"
    page: int = 1000

    def client(self, service: str) -> Any:
        if service == "lambda":
            return self
        client = boto3.client(service)  # type: ignore[call-overload] # whichever is asked for
        client.meta.events.register(
            "provide-client-params.dynamodb.Scan",
            lambda params, **_: params | {"Limit": self.page},
        )
        return client

    def physical_id(self, logical_id: str) -> str:
        return {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "BotsSecret": self.aws.secret,
            "WebhookSecret": self.webhook_secret,
            "RequestsQueue": self.aws.requests_url,
            "DeadLettersQueue": self.aws.dead_letters_url,
            "PublishStatusEventsFunction": "publish-status-events",
        }[logical_id]

    def get_function_configuration(self, **function: str) -> Any:
        """Stand in for Lambda, which moto gives no function without an archive and a role."""
        assert function == {"FunctionName": "publish-status-events"}
        variables = {
            "EVENT_BUS": "default",
            "UNPUBLISHED_QUEUE_URL": "https://not-used-here",
            "PUBLISH_ALL_RECEIPTS": self.all_receipts,
            "POWERTOOLS_SERVICE_NAME": "blip-notifier",
        }
        return {"Environment": {"Variables": variables}}


def test_files_are_published_as_they_stand(stack: Stack, tmp_path: Path) -> None:
    one, several = tmp_path / "one.json", tmp_path / "several.jsonl"
    one.write_text('{"id":\n "order-1"}\n')
    several.write_text('{"id": "order-2"}\nnot JSON\n')

    assert publish(Deployed(stack.aws), [one, several]) == 3

    groups = [call["MessageGroupId"] for name, call in stack.aws.calls if name == "SendMessage"]
    assert set(groups) == {"default"}

    bodies = [record["body"] for record in stack.receive()]
    assert sorted(bodies) == sorted(['{"id":\n "order-1"}\n', '{"id": "order-2"}', "not JSON"])


def test_a_file_that_cannot_be_read_is_named(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="cannot be read"):
        publish(Deployed(stack.aws), [tmp_path / "nowhere.json"])


def test_a_bot_is_paused_and_resumed(stack: Stack) -> None:
    deployed = Deployed(stack.aws)

    pause(deployed, "default")
    pause(deployed, "default")
    (waits,) = stack.deliver(a_request(id="order-1"))
    assert stack.blip.inbox() == []

    resume(deployed, "default")
    stack.deliver(waits)
    assert len(stack.blip.inbox()) == 1


@pytest.mark.parametrize("command", [pause, resume, check_bot])
def test_a_bot_that_does_not_exist_is_said_and_not_made(stack: Stack, command: Any) -> None:
    with pytest.raises(OperationError, match="no entry 'clinic'; it has default"):
        command(Deployed(stack.aws), "clinic")

    assert stack.aws.dynamodb.scan(TableName="identities")["Items"] == []


def test_a_bot_that_works(stack: Stack) -> None:
    findings = check_bot(Deployed(stack.aws), "default")

    assert [finding.good for finding in findings] == [True, True, True, True]
    assert findings[1].detail == "90 % for messages and 90 % for commands"
    assert findings[-1].detail.endswith("templates are approved")
    assert stack.blip.statistics()["lookups"] == {}
    assert stack.blip.inbox() == []


def findings(aws: Aws, entry: dict[str, Any]) -> list[tuple[str, bool | None]]:
    aws.put_bots({"default": entry})
    found = check_bot(Deployed(aws), "default")
    assert all(entry["key"].removeprefix("Key ") not in finding.detail for finding in found)
    return [(finding.what, finding.good) for finding in found]


def test_what_is_wrong_with_a_bot_is_told_apart(aws: Aws, blip: Simulator) -> None:
    channelless = Bot(name="sub", key="Key c3ViOnNlY3JldA==", whatsapp=False)
    blip.put_bot(channelless)

    unfinished = findings(aws, {"key": "Key REPLACE_ME"})
    wrong_key = findings(aws, {"key": "Key d3Jvbmc6a2V5", "base_url": blip.url})
    wrong_url = findings(aws, {"key": blip.key, "base_url": "http://127.0.0.1:9"})
    no_channel = findings(aws, {"key": channelless.key, "base_url": blip.url})

    entry, key, channel = "entry in the secret", "key and URL", "WhatsApp channel"
    share = ("share of the plan", True)
    assert unfinished == [(entry, False), (key, None), (channel, None)]
    assert wrong_key == [(entry, True), share, (key, False), (channel, False)]
    assert wrong_url == [(entry, True), share, (key, False), (channel, False)]
    assert no_channel == [(entry, True), share, (key, True), (channel, False)]


def test_share_of_the_plan_after_a_penalty_is_shown(stack: Stack) -> None:
    table = Table(stack.aws.dynamodb, "identities")
    DynamoDbBotStates(table, time.time).start_cooldown(
        KnownBot(name="default", key="Key Ym90OnNlY3JldA=="), "messages", time.time() + 120
    )

    found = check_bot(Deployed(stack.aws), "default")[1]

    assert (
        found.detail
        == "72 % for messages and 90 % for commands, after a penalty; climbs back to 90 %"
    )


def test_a_restored_ledger_gives_back_what_is_lacking_and_overwrites_nothing(stack: Stack) -> None:
    stack.deliver(a_request(id="order-1"), a_request(id="order-2", to="+5511988887701"))
    dynamodb = stack.aws.dynamodb
    backup = dynamodb.scan(TableName="ledger")["Items"]
    dynamodb.create_table(
        TableName="restored",
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
    )
    for item in backup:
        dynamodb.put_item(TableName="restored", Item=item | {"status": {"S": "claimed"}})
    lost, kept = backup
    dynamodb.delete_item(TableName="ledger", Key={"key": lost["key"]})

    progress = [list(restore_ledger(Deployed(stack.aws), "restored"))[-1] for _ in range(2)]

    assert progress == [(2, 1), (2, 0)]
    after = {json.dumps(item["key"]): item for item in dynamodb.scan(TableName="ledger")["Items"]}
    assert after[json.dumps(kept["key"])] == kept
    back = after[json.dumps(lost["key"])]
    restored_at = back.pop("restored_at")
    assert back == lost | {"status": {"S": "claimed"}}
    # So that its status events, which were published in their own time, are not published again.
    assert abs(int(restored_at["N"]) / 1000 - time.time()) < 600


SINCE = 1_764_115_200.0


def in_the_ledger(
    aws: Aws, key: str, *timeline: tuple[str, float, str | None], **more: Any
) -> None:
    """Put an item with a timeline, whose times are in seconds from SINCE."""
    entries = [[status, 1, round((SINCE + at) * 1000), reason] for status, at, reason in timeline]
    item = {
        "key": key,
        "id": f"id-of-{key}",
        "bot": "default",
        "status": timeline[-1][0],
        "template": "order_shipped",
        "metadata": {"order": key},
        "request": "what nobody may see",
        "timeline": entries,
        "updated_at": entries[-1][2],
    }
    serialize = TypeSerializer().serialize
    plain = {name: serialize(value) for name, value in (item | more).items()}
    aws.dynamodb.put_item(TableName="ledger", Item=plain)


def put_on_the_bus(aws: Aws) -> list[dict[str, Any]]:
    """Return the details of all events that were put, in their order."""
    return [
        json.loads(entry["Detail"])
        for name, call in aws.calls
        if name == "PutEvents"
        for entry in call["Entries"]
    ]


def last(found: Iterator[Republished]) -> Republished:
    *_, at_the_end = found
    return at_the_end


def test_events_since_a_time_are_published_again_in_order_with_the_same_id(aws: Aws) -> None:
    in_the_ledger(aws, "before", ("sent", -200, None), ("consumed", -100, None))
    in_the_ledger(
        aws, "through", ("sent", -10, None), ("accepted", 5, None), ("received", 10, None)
    )
    for number in range(25):
        in_the_ledger(aws, f"after-{number}", ("sent", 1, None), ("failed", 2, "undelivered"))

    done = [last(republish(Deployed(aws), SINCE, None)) for _ in range(2)]

    assert done == [Republished(scanned=27, published=51)] * 2
    first, again = put_on_the_bus(aws)[:51], put_on_the_bus(aws)[51:]
    told = {(event["id"], event["status"]) for event in first}
    assert told == {("id-of-through", "received")} | {
        (f"id-of-after-{number}", status) for number in range(25) for status in ("sent", "failed")
    }
    of_one = [event["status"] for event in first if event["id"] == "id-of-after-7"]
    assert of_one == ["sent", "failed"]
    assert {event["event_id"] for event in first} == {event["event_id"] for event in again}
    assert {event["stack"] for event in first} == {"blip-notifier"}
    assert "what nobody may see" not in json.dumps(first)


def test_what_goes_out_again_is_what_the_stack_publishes(aws: Aws) -> None:
    in_the_ledger(aws, "one", ("sent", 1, None), ("accepted", 5, None))

    assert last(republish(Deployed(aws, all_receipts="true"), SINCE, None)).published == 2


def test_a_cancellation_in_advance_goes_out_again_if_its_request_came_since(aws: Aws) -> None:
    came = round((SINCE + 60) * 1000)
    in_the_ledger(aws, "in-advance", ("cancelled", -3600, None), updated_at=came)

    last(republish(Deployed(aws), SINCE, None))

    assert [event["status"] for event in put_on_the_bus(aws)] == ["cancelled"]


def test_an_item_that_cannot_be_understood_is_named_and_keeps_nothing_back(aws: Aws) -> None:
    in_the_ledger(aws, "poison", ("sent", 1, None), timeline=[["sent"]])
    in_the_ledger(aws, "good", ("sent", 1, None))

    done = last(republish(Deployed(aws), SINCE, None))

    assert (done.published, done.refused) == (1, ("poison",))


def test_a_run_that_was_cut_off_is_continued(aws: Aws) -> None:
    for number in range(6):
        in_the_ledger(aws, f"key-{number}", ("sent", 1, None))
    deployed = Deployed(aws, page=2)

    first = next(republish(deployed, SINCE, None))
    assert (first.scanned, first.published) == (2, 2)
    rest = last(republish(deployed, SINCE, first.continue_from))

    assert (rest.scanned, rest.published, rest.continue_from) == (4, 4, None)
    assert {event["id"] for event in put_on_the_bus(aws)} == {f"id-of-key-{n}" for n in range(6)}


def test_a_bus_that_takes_nothing_ends_the_run_and_names_where_to_continue(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        in_the_ledger(aws, f"key-{number}", ("sent", 1, None))
    deployed = Deployed(aws, page=1)
    key = next(republish(deployed, SINCE, None)).continue_from
    monkeypatch.setattr(SystemClock, "sleep", lambda *_: None)
    monkeypatch.setattr(
        EventBridgeStatusEvents, "put", lambda _, events: [Publication.NOT_NOW] * len(events)
    )

    with pytest.raises(OperationError, match="later continue with the same SINCE"):
        last(republish(deployed, SINCE, None))
    with pytest.raises(OperationError, match=f"later continue with FROM={key}$"):
        last(republish(deployed, SINCE, key))


# --- The webhook's secrets ------------------------------------------------------------------------

# clinic and clinic-vip are two names of one bot at BLiP.
BOTS = {
    "clinic": {"key": "Key Y2xpbmljOmtleQ=="},
    "clinic-vip": {"key": "Y2xpbmljOmtleQ=="},
    "shop": {"key": "Key c2hvcDprZXk="},
    "new": {"key": "Key REPLACE_ME"},
}
CLINIC = ["clinic", "clinic-vip"]


class Webhook:
    """The webhook as BLiP meets it, and the command that rotates its secrets."""

    def __init__(self, receipts: ReceiptsStack, clock: SimulatedClock) -> None:
        self._receipts = receipts
        self._clock = clock
        self._deployed = Deployed(receipts.aws, receipts.webhook_secret)
        receipts.aws.put_bots(BOTS)

    def rotate(self, bot: str, *, leaked: bool = False) -> Rotation:
        rotation = rotate_webhook(self._deployed, bot, leaked=leaked)
        self._clock.advance(301)  # every sandbox has the new one
        return rotation

    def lets_in(self, secret: str) -> list[str]:
        """Return the bots whose receipts this secret lets in; `*` stands for all."""
        receipt = a_receipt(ledger_key("clinic", "order-1"), "received")
        if self._receipts.post(receipt, secret=secret)["statusCode"] != 200:
            return []
        (waits,) = self._receipts.waiting()
        bots: list[str] = waits.get("bots", ["*"])
        return bots

    def put(self, text: str) -> None:
        self._receipts.aws.secrets_manager.put_secret_value(
            SecretId=self._receipts.webhook_secret, SecretString=text
        )

    def value(self) -> str:
        return self._receipts.aws.secrets_manager.get_secret_value(
            SecretId=self._receipts.webhook_secret
        )["SecretString"]


@pytest.fixture
def webhook(receipts: ReceiptsStack, clock: SimulatedClock) -> Webhook:
    return Webhook(receipts, clock)


def test_the_first_rotation_locks_no_bot_out(webhook: Webhook, clock: SimulatedClock) -> None:
    assert webhook.lets_in(SECRET) == ["*"]

    rotation = webhook.rotate("shop")

    assert rotation.bots == ["shop"]
    assert webhook.lets_in(rotation.secret) == ["shop"]
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS)
    clock.advance(24 * 3600)
    assert webhook.lets_in(rotation.secret) == ["shop"]
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS.keys() - {"shop"})


def test_the_rotation_of_another_bot_drops_no_previous_secret(
    webhook: Webhook, clock: SimulatedClock
) -> None:
    shop = webhook.rotate("shop")
    clinic = webhook.rotate("clinic")
    clock.advance(12 * 3600)
    new = webhook.rotate("new")

    assert clinic.bots == CLINIC
    assert webhook.lets_in(clinic.secret) == CLINIC
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS)
    clock.advance(12 * 3600)
    assert webhook.lets_in(SECRET) == ["new"]
    clock.advance(12 * 3600)
    assert webhook.lets_in(SECRET) == []
    for rotation in (shop, clinic, new):
        assert webhook.lets_in(rotation.secret) == rotation.bots


def test_a_leaked_secret_is_refused_within_minutes(webhook: Webhook) -> None:
    first = webhook.rotate("shop")
    leaked = webhook.rotate("shop", leaked=True)

    assert leaked.previous_until is None
    assert webhook.lets_in(first.secret) == []
    assert webhook.lets_in(leaked.secret) == ["shop"]
    # The one that all have shared is as bad for this bot, and good for the others.
    assert sorted(webhook.lets_in(SECRET)) == sorted(BOTS.keys() - {"shop"})
    assert sorted(leaked.others_with_the_old_one) == sorted(BOTS.keys() - {"shop"})


def test_only_bots_with_the_leaked_secret_are_named(
    webhook: Webhook, clock: SimulatedClock
) -> None:
    webhook.rotate("shop")
    clock.advance(24 * 3600)

    assert webhook.rotate("shop", leaked=True).others_with_the_old_one == []
    # The one before of a bot counts, too.
    webhook.rotate("new")
    assert webhook.rotate("clinic", leaked=True).others_with_the_old_one == ["new"]


def test_until_when_the_one_before_counts(webhook: Webhook, clock: SimulatedClock) -> None:
    before = clock.now()

    until = webhook.rotate("shop").previous_until

    assert until is not None
    assert until.timestamp() - before == pytest.approx(24 * 3600, abs=60)


def test_a_previous_secret_that_counts_is_not_dropped_by_the_next_rotation(
    webhook: Webhook, clock: SimulatedClock
) -> None:
    webhook.rotate("clinic")
    value = webhook.value()

    with pytest.raises(
        OperationError, match=r"clinic-vip was rotated less than a day ago.* until 20"
    ):
        webhook.rotate("clinic-vip")
    assert webhook.value() == value

    clock.advance(24 * 3600)
    webhook.rotate("clinic-vip")


def test_a_plain_secret_that_was_just_rotated_keeps_both(
    webhook: Webhook, clock: SimulatedClock
) -> None:
    webhook.put("second")

    with pytest.raises(OperationError, match="rotated less than a day ago"):
        webhook.rotate("shop")
    assert webhook.lets_in(SECRET) == ["*"]
    webhook.rotate("shop", leaked=True)

    others = sorted(BOTS.keys() - {"shop"})
    assert sorted(webhook.lets_in("second")) == sorted(webhook.lets_in(SECRET)) == others
    clock.advance(24 * 3600)
    assert webhook.lets_in(SECRET) == []
    assert sorted(webhook.lets_in("second")) == others


def test_a_bot_without_an_entry_gets_one(webhook: Webhook) -> None:
    webhook.put('{"shop": {"current": "s"}}')

    rotation = webhook.rotate("clinic")

    assert rotation.previous_until is None
    assert webhook.lets_in(rotation.secret) == CLINIC
    assert webhook.lets_in("s") == ["shop"]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", ""),
        ('{"shop": "s3cret"}', " at shop"),
        ('{"shop": {"current": 55555}}', " at shop.current"),
        ('{"shop": {"current": "s3cret", "rotated_at": "soon"}}', " at shop.rotated_at"),
    ],
)
def test_what_cannot_be_read_is_not_written_over(webhook: Webhook, text: str, where: str) -> None:
    webhook.put(text)

    with pytest.raises(OperationError) as caught:
        webhook.rotate("clinic")

    assert str(caught.value) == f"the webhook's secret cannot be read{where}: fix it first"
    assert webhook.value() == text


def test_a_secret_is_for_a_bot_that_exists(webhook: Webhook) -> None:
    with pytest.raises(OperationError, match="no entry 'clinc'; it has clinic, clinic-vip"):
        webhook.rotate("clinc")

    assert webhook.value() == SECRET


def test_a_new_secret_is_long_and_not_shown_by_accident(webhook: Webhook) -> None:
    rotation = webhook.rotate("shop")

    assert re.fullmatch("[0-9a-f]{64}", rotation.secret)
    assert rotation.secret not in repr(rotation)
