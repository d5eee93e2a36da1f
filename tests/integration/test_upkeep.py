"""The operator's commands on tables and secret, over moto and the simulator."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from functions.upkeep import UpkeepError, check_bot, pause, publish, restore_ledger, resume
from notifier.aws.pacing import DynamoDbPacing
from notifier.aws.table import Table
from notifier.bots import Bot as KnownBot
from tests.integration.conftest import Aws, Stack, a_request
from tests.local.blip import Bot, Simulator


@dataclass
class Deployed:
    """The resources of a stack, as CloudFormation would name them."""

    aws: Aws

    def client(self, service: str) -> Any:
        return boto3.client(service)  # type: ignore[call-overload] # whichever is asked for

    def physical_id(self, logical_id: str) -> str:
        return {
            "LedgerTable": "ledger",
            "IdentitiesTable": "identities",
            "BotsSecret": self.aws.secret,
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
