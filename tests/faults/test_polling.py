"""How fast BLiP's history is asked, on a simulated clock."""

import json
from typing import Any

from notifier.domain.notification import ledger_key
from tests.faults.blip import Accepted, Account, HistorySettings
from tests.faults.long_runs import request
from tests.faults.world import Settings, World

EVENTS = ["accepted", "dispatched", "received", "consumed"]


def rate(due: int) -> float:
    """Return how many of so many questions that are due at once are asked and kept in a second."""
    bot = Account("default", commands_per_second=200)
    history = HistorySettings(lag=0.0)
    settings = Settings(webhook=False, latency=(0.1, 0.1), history=history)
    with World(1, bots=[bot], settings=settings) as world:
        world.recording.automatic = False  # what is put on the queue stays there
        keys = [_due(world, number) for number in range(due)]
        due_at = world.simulation.now * 1000
        items = world.tables["ledger"].items
        world.run(60)
        took = world.run_until(
            lambda: all(items[key]["poll_at"] > due_at for key in keys), at_most=3600, every=1
        )
        put = [json.loads(message.body) for message in world.receipts.waiting()]
        assert {(event["id"], event["event"]) for event in put} == {
            (key, event) for key in keys for event in EVENTS
        }
        assert world.blip.questions == due
        assert bot.throttled == 0
        assert bot.most_per_second["commands"] <= 200
        assert world.unforeseen == []
    return due / took


def _due(world: World, number: int) -> str:
    """Add a sent message whose receipts are due."""
    body = request(number)
    key = ledger_key("default", body["id"])
    sent_at = world.simulation.now - 300
    item: dict[str, Any] = {
        "key": key,
        "status": "sent",
        "generation": 1,
        "request": json.dumps(body),
        "timeline": [["sent", 1, round(sent_at * 1000)]],
        "expires_at": round(sent_at + 45 * 86_400),
        "poll_bot": "default",
        "poll_at": round((sent_at + 300) * 1000),
        "poll_since": round(sent_at * 1000),
    }
    world.tables["ledger"].put(key, item)
    accepted = Accepted(key, "default", body["to"], sent_at, sent_at)
    for event in EVENTS:
        world.blip.report(accepted, event, pushed=False)
    return key


def test_history_queries_of_one_bot_keep_up_with_a_full_plan_of_sends() -> None:
    """A full plan sends 47.5 a second, and each of them is asked about."""
    assert rate(3000) > 60
