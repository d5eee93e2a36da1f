"""The operator's commands on tables and secret, over moto and the simulator."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from functions.upkeep import (
    Rotation,
    UpkeepError,
    check_bot,
    pause,
    publish,
    restore_ledger,
    resume,
    rotate_webhook,
)
from notifier.aws.pacing import DynamoDbPacing
from notifier.aws.table import Table
from notifier.bots import Bot as KnownBot
from notifier.request import ledger_key
from tests.integration.conftest import Aws, Stack, a_request
from tests.integration.receipts_stack import SECRET, ReceiptsStack, SimulatedClock, a_receipt
from tests.local.blip import Bot, Simulator


@dataclass
class Deployed:
    """The resources of a stack, as CloudFormation would name them."""

    aws: Aws
    webhook_secret: str = ""

    def client(self, service: str) -> Any:
        return boto3.client(service)  # type: ignore[call-overload] # whichever is asked for

    def physical_id(self, logical_id: str) -> str:
        return {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "BotsSecret": self.aws.secret,
            "WebhookSecret": self.webhook_secret,
            "RequestsQueue": self.aws.requests_url,
            "DeadLettersQueue": self.aws.dead_letters_url,
        }[logical_id]


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
    with pytest.raises(UpkeepError, match="cannot be read"):
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
    with pytest.raises(UpkeepError, match="no entry 'clinic'; it has default"):
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
    DynamoDbPacing(table, time.time).shut(
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
    assert after[json.dumps(lost["key"])] == lost | {"status": {"S": "claimed"}}


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

    with pytest.raises(UpkeepError, match=r"clinic-vip was rotated less than a day ago.* until 20"):
        webhook.rotate("clinic-vip")
    assert webhook.value() == value

    clock.advance(24 * 3600)
    webhook.rotate("clinic-vip")


def test_a_plain_secret_that_was_just_rotated_keeps_both(
    webhook: Webhook, clock: SimulatedClock
) -> None:
    webhook.put("second")

    with pytest.raises(UpkeepError, match="rotated less than a day ago"):
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

    with pytest.raises(UpkeepError) as caught:
        webhook.rotate("clinic")

    assert str(caught.value) == f"the webhook's secret cannot be read{where}: mend it first"
    assert webhook.value() == text


def test_a_secret_is_for_a_bot_that_exists(webhook: Webhook) -> None:
    with pytest.raises(UpkeepError, match="no entry 'clinc'; it has clinic, clinic-vip"):
        webhook.rotate("clinc")

    assert webhook.value() == SECRET


def test_a_new_secret_is_long_and_not_shown_by_accident(webhook: Webhook) -> None:
    rotation = webhook.rotate("shop")

    assert re.fullmatch("[0-9a-f]{64}", rotation.secret)
    assert rotation.secret not in repr(rotation)
