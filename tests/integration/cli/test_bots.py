"""`pause`, `resume` and `check-bot`, over moto and the simulator."""

import time
from typing import Any

import pytest

from functions.cli.bots import check_bot, pause, resume
from functions.cli.errors import CommandError
from notifier.aws.bot_state import DynamoDbBotStates
from notifier.aws.table import Table
from notifier.domain.bots import Bot as KnownBot
from tests.integration.cli.deployed import Deployed
from tests.integration.conftest import Aws, Stack
from tests.local.blip import Bot, Simulator
from tests.support.builders import a_request


def test_paused_bot_sends_nothing_until_it_is_resumed(stack: Stack) -> None:
    deployed = Deployed(stack.aws)

    pause(deployed, "default")
    pause(deployed, "default")
    (waits,) = stack.deliver(a_request(id="order-1"))
    assert stack.blip.inbox() == []

    resume(deployed, "default")
    stack.deliver(waits)
    assert len(stack.blip.inbox()) == 1


@pytest.mark.parametrize("command", [pause, resume, check_bot])
def test_commands_refuse_a_bot_that_does_not_exist(stack: Stack, command: Any) -> None:
    with pytest.raises(CommandError, match="no entry 'clinic'; it has default"):
        command(Deployed(stack.aws), "clinic")

    assert stack.aws.dynamodb.scan(TableName="identities")["Items"] == []


def test_check_bot_tries_everything_of_a_bot_that_works(stack: Stack) -> None:
    findings = check_bot(Deployed(stack.aws), "default")

    assert [finding.good for finding in findings] == [True] * 5
    assert findings[2].detail == "90 % for messages and 90 % for commands"
    assert "templates are approved: " in findings[-1].detail
    assert "order_shipped (pt_BR)" in findings[-1].detail
    assert "; paused: paused_template (pt_BR)" in findings[-1].detail
    assert stack.blip.statistics()["lookups"] == {}
    assert stack.blip.inbox() == []


def findings(aws: Aws, entry: dict[str, Any]) -> list[tuple[str, bool | None]]:
    aws.put_bots({"default": entry})
    found = check_bot(Deployed(aws), "default")
    assert all(entry["key"].removeprefix("Key ") not in finding.detail for finding in found)
    return [(finding.what, finding.good) for finding in found]


def test_check_bot_says_that_a_bot_is_paused(stack: Stack) -> None:
    deployed = Deployed(stack.aws)
    pause(deployed, "default")

    _, ready, *others = check_bot(deployed, "default")

    assert (ready.what, ready.good) == ("ready", False)
    assert ready.detail.startswith("it is paused since ")
    assert ready.detail.endswith("; `make resume BOT=default` resumes it")
    assert all(finding.good for finding in others)


def test_check_bot_tells_apart_what_is_wrong_with_a_bot(aws: Aws, blip: Simulator) -> None:
    channelless = Bot(name="sub", key="Key c3ViOnNlY3JldA==", whatsapp=False)
    blip.put_bot(channelless)

    unfinished = findings(aws, {"key": "Key REPLACE_ME"})
    wrong_key = findings(aws, {"key": "Key d3Jvbmc6a2V5", "base_url": blip.url})
    wrong_url = findings(aws, {"key": blip.key, "base_url": "http://127.0.0.1:9"})
    no_channel = findings(aws, {"key": channelless.key, "base_url": blip.url})

    entry, key, channel = "entry in the secret", "key and URL", "WhatsApp channel"
    usable = [(entry, True), ("ready", True), ("share of the plan", True)]
    assert unfinished == [(entry, False), (key, None), (channel, None)]
    assert wrong_key == [*usable, (key, False), (channel, False)]
    assert wrong_url == [*usable, (key, False), (channel, False)]
    assert no_channel == [*usable, (key, True), (channel, False)]


def test_check_bot_shows_the_share_of_the_plan_after_a_penalty(stack: Stack) -> None:
    table = Table(stack.aws.dynamodb, "identities")
    DynamoDbBotStates(table, time.time).start_cooldown(
        KnownBot(name="default", key="Key Ym90OnNlY3JldA=="), "messages", time.time() + 120
    )

    _, ready, share, *_ = check_bot(Deployed(stack.aws), "default")

    assert ready.good is False
    assert ready.detail.startswith("it is throttled until ")
    assert (
        share.detail
        == "72 % for messages and 90 % for commands, after a penalty; climbs back to 90 %"
    )
