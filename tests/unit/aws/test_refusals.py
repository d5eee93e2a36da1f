"""Refusals that meet DynamoDB at its worst; `test_dead_letters.py` has what delivery does."""

from typing import Any

import pytest

from notifier.aws.outbox import REFUSED
from notifier.aws.refusals import DynamoDbRefusals
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import Refusal
from notifier.domain.notification import ledger_key
from tests.support.builders import a_request
from tests.support.world import World

KEY = ledger_key("default", "order-1") + REFUSED


@pytest.fixture
def world() -> World:
    return World()


def refuse(world: World, message: str) -> None:
    refusals = DynamoDbRefusals(world.ledger_table, world.clock.now)
    refusals.keep("default", "order-1", Refusal(message, Reason.INVALID))
    world.clock.advance(1)


def kept(world: World) -> list[str]:
    return [refusal[0] for refusal in world.ledger_table.get(KEY)["refusals"]]


def fill(world: World) -> None:
    for number in range(10):
        refuse(world, f"message-{number}")


def test_full_list_that_expires_starts_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(world)
    update = world.ledger_table.update

    def swept(*call: Any) -> Any:
        answer = update(*call)
        world.ledger_table.items.pop(KEY)
        monkeypatch.undo()
        return answer

    monkeypatch.setattr(world.ledger_table, "update", swept)

    refuse(world, "the last")

    assert kept(world) == ["the last"]
    assert len(world.events.published) == 11


@pytest.mark.parametrize("before", [0, 3, 9, 10])
def test_refusal_with_a_lost_answer_is_one_event(
    world: World, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """boto3 asks again, and DynamoDB writes it twice."""
    for number in range(before):
        refuse(world, f"message-{number}")
    world.events.published.clear()
    update = world.ledger_table.update

    def twice(*call: Any) -> Any:
        update(*call)
        return update(*call)

    monkeypatch.setattr(world.ledger_table, "update", twice)

    refuse(world, "the last")

    assert kept(world)[-1] == "the last"
    assert len(kept(world)) <= 10
    assert len(world.events.published) == 1


def test_refusals_affect_no_notification_and_no_other_id(world: World) -> None:
    first, second = a_request(id="order-1"), a_request(id="order-2")
    world.sandbox().deliver(first, second)
    before = world.entry(first), world.entry(second)
    published = list(world.events.published)

    fill(world)
    refuse(world, "the last")

    assert (world.entry(first), world.entry(second)) == before
    refused = world.events.published[len(published) :]
    assert [(event.key, event.generation) for event in refused] == [
        (ledger_key("default", "order-1"), 0)
    ] * 11
    assert kept(world) == [*(f"message-{number}" for number in range(1, 10)), "the last"]
