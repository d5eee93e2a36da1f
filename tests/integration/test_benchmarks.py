"""The benchmarks measure what they say: a short run of each competitor, and the count of units."""

from collections.abc import Iterator

import pytest

from tests.benchmarks.__main__ import measure_afterwards
from tests.benchmarks.aws import Tables, item_size
from tests.benchmarks.batches import Case, measure
from tests.benchmarks.cost import SENDING, lambda_dollars, memory_mb
from tests.benchmarks.lab import COMPETITORS, FLOOR, OURS, TEXTBOOK, Function, Lab, lab
from tests.benchmarks.memory import SIZES_MB
from tests.benchmarks.quota import SUPPORTED, processor_seconds, share_of


@pytest.fixture(scope="module")
def running() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.fixture(scope="module")
def functions(running: Lab) -> list[Function]:
    return [running.function(name) for name in COMPETITORS]


def test_every_competitor_does_the_work_and_every_call_is_counted(
    running: Lab, functions: list[Function]
) -> None:
    """A competitor that sends too few messages fails the run."""
    case = Case("mixed", known=5, new=5, refused=1, rounds=2)

    figures = {f.competitor: f for f in measure(running, functions, case, latency=0)}

    # Slower machines need more reservations than one per group.
    assert figures[OURS].calls["UpdateItem"] >= 3.7
    assert figures[FLOOR].calls["UpdateItem"] >= 3.6
    assert figures[TEXTBOOK].calls == pytest.approx(
        {"PutItem": 1.5, "GetItem": 1, "UpdateItem": 1, "SendMessage": 0.1}
    )
    assert figures[TEXTBOOK].write_units == pytest.approx(2.5)
    assert figures[TEXTBOOK].read_units == pytest.approx(0.5)
    assert all(f.cpu > 0 and f.p95 >= f.p50 > 0 and f.peak_bytes > 10e6 for f in figures.values())


@pytest.mark.skipif(not SUPPORTED, reason="only Linux shows the processor clock of another process")
def test_sandbox_has_the_share_of_its_memory_from_its_start(running: Lab) -> None:
    with running.sandbox(512) as function:
        share = processor_seconds(function.pid) / function.start_seconds
        case = Case("mixed", known=5, new=5, rounds=2)
        (figures,) = measure(running, [function], case, latency=0)

    # The governor may have been late at the end.
    assert share <= 1.5 * share_of(512)
    assert (figures.competitor, len(figures.seconds)) == ("512 MB", 2)


def test_deployed_memory_is_one_of_those_measured() -> None:
    assert memory_mb(SENDING) in SIZES_MB


def test_lambda_cost_is_per_invocation_and_per_memory_and_time() -> None:
    assert lambda_dollars(1, 0, 512) == pytest.approx(0.20)
    assert lambda_dollars(0, 1, 1024) == pytest.approx(13.33, abs=0.01)
    assert lambda_dollars(0.1, 0.1, 512) == pytest.approx(0.02 + 13.33 / 20, abs=0.01)


def test_work_after_sending_is_counted(running: Lab, functions: list[Function]) -> None:
    received, recorded, one, ten = measure_afterwards(running, functions[0])

    assert received.calls == {"SendMessage": pytest.approx(1)}
    assert recorded.calls == {"UpdateItem": pytest.approx(1)}
    assert one.calls == {"PutEvents": pytest.approx(1)}
    assert ten.calls == {"PutEvents": pytest.approx(0.1)}


def test_item_size_is_that_of_its_names_and_values() -> None:
    assert item_size({"key": "abc"}) == 6
    assert item_size({"é": "é"}) == 4
    assert item_size({"n": 0, "m": 1234, "o": -1}) == 3 + 2 + 3 + 3
    assert item_size({"a": None, "b": True}) == 4
    assert item_size({"l": ["x", {"y": "z"}]}) == 1 + 3 + (1 + 1) + (1 + 3 + 1 + 1 + 1)


def test_units_depend_on_size_and_kind_of_read() -> None:
    tables = Tables()
    tables.put("t", "small", {"key": "small"})
    tables.put("t", "large", {"key": "large", "text": "x" * 5000})

    def units(**call: object) -> float:
        tables.units["read"] = 0.0
        tables.get_item({"TableName": "t"} | call)
        return tables.units["read"]

    assert units(Key={"key": {"S": "small"}}) == 0.5
    assert units(Key={"key": {"S": "small"}}, ConsistentRead=True) == 1
    assert units(Key={"key": {"S": "large"}}, ConsistentRead=True) == 2
    assert units(Key={"key": {"S": "not there"}}) == 0.5
    tables.put_item({"TableName": "t", "Item": {"key": {"S": "large"}}})
    # What is replaced counts, where it is larger.
    assert tables.units["write"] == 5
