"""The simulated stream and its mapping do what AWS's documentation says of them."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from notifier.aws.table import Item
from tests.support.simulated_aws.dynamodb import Aws, AwsFaults, SimTable
from tests.support.simulated_aws.simulation import Process, Simulation
from tests.support.simulated_aws.sqs import Sandbox
from tests.support.simulated_aws.stream import (
    Record,
    Stream,
    StreamFaults,
    StreamMapping,
    StreamSettings,
    deployed,
)

DAY = 86_400.0
SETTINGS = StreamSettings({"sent", "failed"}, window=1.0, most=10, oldest=82_800.0, timeout=30.0)


class Theatre:
    """A table with a stream, and a function of the test's own behind it.

    Attributes:
        batches: what the function was given, as sequence numbers, with when.
    """

    def __init__(self, answer: Callable[[list[int]], list[int]], **mapping: Any) -> None:
        self.simulation = Simulation(1)
        self.table = SimTable("ledger", Aws(self.simulation, AwsFaults()))
        self.stream = Stream(self.simulation)
        self.records: list[Record] = []
        self.table.on_write = self._written
        self.batches: list[tuple[float, list[int]]] = []
        self._answer = answer
        self.mapping = StreamMapping(
            self.simulation, self._sandbox, self.stream, SETTINGS, **mapping
        )

    def _written(self, key: str, before: Item, after: Item) -> None:
        if record := self.stream.write(key, before, after):
            self.records.append(record)

    def _sandbox(self) -> Sandbox:
        def handle(event: dict[str, Any], _: float) -> dict[str, Any]:
            numbers = [int(record["dynamodb"]["SequenceNumber"]) for record in event["Records"]]
            self.batches.append((self.simulation.now, numbers))
            failed = self._answer(numbers)
            return {"batchItemFailures": [{"itemIdentifier": str(each)} for each in failed]}

        return Sandbox(Process("function"), handle)

    def write(self, *statuses: str, key: str = "one") -> None:
        """Write an item's status, once for each."""
        for status in statuses:
            before = self.table.items.get(key, {})
            self.table.items[key] = {"key": key, "status": status, "number": len(self.records)}
            self._written(key, before, self.table.items[key])

    def run(self, seconds: float) -> list[list[int]]:
        """Advance the time; return the batches so far."""
        self.simulation.run(seconds)
        return [numbers for _, numbers in self.batches]


def done(_: list[int]) -> list[int]:
    return []


def test_every_write_that_changes_an_item_is_a_record_with_both_images() -> None:
    theatre = Theatre(done)

    def write() -> None:
        table, change = theatre.table, "SET #status = :new"
        table.update("one", change, "", {":new": "sent"})
        table.update("one", change, "", {":new": "sent"})  # changes nothing
        table.update("one", change, "", {":new": "failed"})
        table.update("one", change, "attribute_not_exists(#status)", {":new": "sent"})
        table.delete("one")
        table.delete("one")

    with theatre.simulation:
        theatre.simulation.spawn(Process("writer"), write)
        theatre.run(10)

    events = [record.event() for record in theatre.records]
    assert [event["eventName"] for event in events] == ["INSERT", "MODIFY", "REMOVE"]
    assert [event["dynamodb"]["SequenceNumber"] for event in events] == ["1", "2", "3"]
    old, new = events[1]["dynamodb"]["OldImage"], events[1]["dynamodb"]["NewImage"]
    assert (old["status"], new["status"]) == ({"S": "sent"}, {"S": "failed"})
    assert "OldImage" not in events[0]["dynamodb"]
    assert "NewImage" not in events[2]["dynamodb"]


def test_expired_item_is_a_removal() -> None:
    theatre = Theatre(done)

    def write() -> None:
        theatre.table.update("one", "SET expires_at = :at", "", {":at": 1_800_000_100})
        theatre.simulation.sleep(200)
        while theatre.table.get("one"):  # DynamoDB deletes it some time later
            theatre.simulation.sleep(60)

    with theatre.simulation:
        theatre.simulation.spawn(Process("writer"), write)
        theatre.run(DAY)

    assert [record.name for record in theatre.records] == ["INSERT", "REMOVE"]


def test_batch_gathers_for_a_second_and_holds_only_filtered_records() -> None:
    theatre = Theatre(done)
    with theatre.simulation:
        theatre.write("sent", "claimed", "failed", "unknown", "sent")
        written_at = theatre.simulation.now

        assert theatre.run(60) == [[1, 3, 5]]
        ((called_at, _),) = theatre.batches
        assert 1 <= called_at - written_at < 2
        assert theatre.mapping.waiting == 0


def test_full_batch_does_not_wait() -> None:
    theatre = Theatre(done)
    with theatre.simulation:
        theatre.write(*["sent"] * 13)

        assert theatre.run(0.5) == [[*range(1, 11)]]
        assert theatre.run(60) == [[*range(1, 11)], [11, 12, 13]]


def test_records_return_from_the_lowest_failed_number_on() -> None:
    answers = iter([[4, 3], [3], []])
    theatre = Theatre(lambda _: next(answers))
    with theatre.simulation:
        theatre.write(*["sent"] * 5)

        assert theatre.run(60) == [[1, 2, 3, 4, 5], [3, 4, 5], [3, 4, 5]]


def test_failed_function_gets_the_whole_batch_again_before_newer_records() -> None:
    left = [RuntimeError()]

    def raises(_: list[int]) -> list[int]:
        if left:
            theatre.write("failed")
            raise left.pop()
        return []

    theatre = Theatre(raises)
    with theatre.simulation:
        theatre.write("sent", "failed")

        assert theatre.run(60) == [[1, 2], [1, 2], [3]]
        assert len(theatre.mapping.errors) == 1


def test_killed_or_timed_out_sandbox_gets_the_whole_batch_again() -> None:
    times: list[int] = []

    def hangs(_: list[int]) -> list[int]:
        times.append(1)
        if len(times) < 3:
            theatre.simulation.sleep(40)
        return []

    theatre = Theatre(hangs)
    with theatre.simulation:
        theatre.write("sent", "failed")
        theatre.run(5)
        (process,) = theatre.mapping.busy
        theatre.mapping.kill(process)

        assert theatre.run(60) == [[1, 2]] * 3
        assert (theatre.mapping.killed, theatre.mapping.timeouts) == (2, 1)


def test_shard_has_one_batch_at_a_time_and_does_not_wait_for_another() -> None:
    def fails(numbers: list[int]) -> list[int]:
        return numbers[:1] if 1 in numbers else []

    theatre = Theatre(fails)
    with theatre.simulation:
        theatre.write("sent", key="one")
        for number in range(40):
            theatre.write("sent", key=f"other {number}")
        batches = theatre.run(600)

    # One of four shards has the record that fails, and with it all that came after it.
    done_with = {number for batch in batches if 1 not in batch for number in batch}
    stuck = {record.number for record in theatre.records} - done_with
    assert 1 in stuck
    assert 25 < len(done_with) < 40
    assert theatre.mapping.waiting == len(stuck)


def test_failing_record_returns_until_it_is_23_hours_old_and_is_dropped() -> None:
    dropped: list[Record] = []
    theatre = Theatre(lambda numbers: numbers[:1], on_dropped=dropped.append)
    with theatre.simulation:
        theatre.write("sent")
        theatre.run(82_000)
        theatre.write("failed")

        assert dropped == []
        theatre.run(1000)
        assert [record.number for record in dropped] == [1]
        assert theatre.batches[-1][1] == [2]
        called_at = [at for at, _ in theatre.batches]
        assert max(later - earlier for earlier, later in pairwise(called_at)) < 120


def test_batch_may_be_late_and_repeated() -> None:
    theatre = Theatre(done, faults=StreamFaults(repeated=0.5, late=0.5))
    with theatre.simulation:
        for _ in range(50):
            theatre.write("sent")
            theatre.run(1000)
    numbers = [number for _, batch in theatre.batches for number in batch]

    assert set(numbers) == set(range(1, 51))
    assert len(numbers) > 60
    waits = [at - theatre.records[batch[0] - 1].at for at, batch in theatre.batches]
    assert max(waits) > 100


def test_mapping_has_the_template_s_settings() -> None:
    settings = deployed()

    assert (settings.window, settings.most, settings.oldest) == (1, 100, 82_800)
    assert {"sent", "received", "failed", "rejected", "cancelled"} <= set(settings.statuses)
    assert not {"claimed", "sending", "retrying", "unknown"} & set(settings.statuses)


@pytest.mark.parametrize("identifier", ["99", "0"])
def test_answer_that_names_no_record_of_the_batch_is_a_fault(identifier: str) -> None:
    theatre = Theatre(lambda _: [int(identifier)])
    with theatre.simulation:
        theatre.write("sent")
        theatre.run(5)

    assert [type(error) for error in theatre.mapping.errors][:1] == [AssertionError]
