"""What `make run` shows, on a clock that only the test moves, against the files in `screens/`."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.local.machine import StackError
from tests.local.progress import Bars, Steps
from tests.local.rows import Row, read_rows
from tests.local.summary import Summary, percentile

SCREENS = Path(__file__).parent / "screens"
EVENTS = Path(__file__).parents[2] / "events"
PUBLISHED = 1_000_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_console(width: int = 80, *, is_terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=is_terminal, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def a_row(number: int = 1, **changes: object) -> Row:
    request = {
        "id": f"order-{number}",
        "to": "+5531900001001",
        "template": {"name": "order_shipped", "language": "pt_BR", "body": ["Maria", "981"]},
    }
    row = Row.read(number, f"orders.jsonl:{number}", json.dumps(request | changes).encode())
    row.published_at = PUBLISHED
    return row


def deliver(row: Row, *, sent: float = 0.4, delivered: float = 0.9, read: float = 1.5) -> Row:
    row.sent_at, row.delivered_at = PUBLISHED + sent, PUBLISHED + delivered
    row.end("consumed", None, PUBLISHED + read)
    return row


def refuse(row: Row, reason: str = "invalid", detail: str = "to: is required") -> Row:
    row.detail = detail
    row.end("rejected", reason, PUBLISHED + 0.2)
    return row


def samples() -> list[Row]:
    """The samples as they end."""
    rows = read_rows(sorted(EVENTS.glob("*.json")))
    for row in rows:
        row.published_at = PUBLISHED
        if row.line <= 17:
            deliver(row)
        else:
            name = row.source.removesuffix(".json").partition("-")[2].replace("-", "_")
            refuse(row, name, row.problem or "some sentence of why")
    rows[16].repeats = rows[0].source
    return rows


def summarised(
    rows: list[Row], width: int = 80, *, are_samples: bool = False, has_receipts: bool = True
) -> str:
    console = a_console(width)
    Summary(rows, are_samples=are_samples, has_receipts=has_receipts).show(console)
    return shown(console)


def matches(text: str, name: str) -> None:
    """Hold a text against a file; write the file anew where it is gone."""
    file = SCREENS / name
    if not file.exists():
        file.write_text(text)
        pytest.fail(f"{file} was written: look at it, and commit it")
    assert text == file.read_text()


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_samples_have_a_verdict_and_a_line_each(width: int) -> None:
    text = summarised(samples(), width, are_samples=True)
    verdict, _, _ = text.lstrip().partition("\n\n")
    assert " ".join(verdict.split()) == (
        "✓ 24 of 24 as expected: 17 delivered, 7 refused as they should be; median 0.4 s to sent"
    )
    assert max(map(len, text.splitlines())) <= width
    matches(text, f"samples-{width}.txt")


def test_sample_that_ended_otherwise_says_how_it_should_have_ended() -> None:
    rows = samples()
    refuse(rows[1], "undelivered", "BLiP reports reason 132001")
    deliver(rows[18])
    text = summarised(rows, are_samples=True)
    assert text.lstrip().startswith("✗ 22 of 24 as expected: 17 delivered, 7 refused; median 0.4 s")
    assert "✗ 02-image.json" in text
    assert "should be delivered; BLiP reports reason 132001" in text
    assert "should be invalid" in text


def test_long_id_and_long_source_are_never_cut() -> None:
    row = deliver(a_row(id="i" * 128))
    row.source = "s" * 60
    text = summarised([row])
    assert "i" * 128 in text
    assert "s" * 60 in text
    assert "consumed" in text


def test_requests_of_ones_own_are_judged_by_whether_they_arrived() -> None:
    rows = [deliver(a_row(1)), refuse(a_row(2)), a_row(3)]
    rows[2].status = "retrying"
    text = summarised(rows)
    assert text.lstrip().startswith(
        "✗ 1 of 3 delivered: 1 not, 1 not ended; median 0.4 s to sent\n"
    )
    assert "to: is required" in text
    assert "still retrying" in text


def test_another_blip_is_only_known_to_have_taken_them() -> None:
    row = a_row()
    row.sent_at = PUBLISHED + 1
    row.end("sent", None, PUBLISHED + 1)
    assert (
        summarised([row], has_receipts=False)
        .lstrip()
        .startswith("✓ 1 of 1 sent; median 1.0 s to sent\n")
    )


@pytest.mark.parametrize("width", [80, 200])
def test_many_requests_have_figures_and_only_failures_have_lines(width: int) -> None:
    rows = [deliver(a_row(n), sent=n / 100, delivered=n / 50, read=n / 10) for n in range(1, 296)]
    rows += [refuse(a_row(n)) for n in range(296, 299)]
    rows += [refuse(a_row(299), "expired", "valid_until has passed"), a_row(300)]
    text = summarised(rows, width)
    matches(text, f"many-{width}.txt")
    counts = [int(line.split()[-1]) for line in text.splitlines()[3:8]]
    assert counts == [295, 3, 1, 1, 300]
    assert "orders.jsonl:299" in text
    assert "orders.jsonl:295" not in text


def test_of_very_many_failures_the_rest_is_counted() -> None:
    text = summarised([refuse(a_row(n)) for n in range(1, 301)])
    assert "orders.jsonl:50 " in text
    assert "orders.jsonl:51 " not in text
    assert "and 250 more" in text


def test_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([], 50) is None
    assert percentile([3.0], 95) == 3.0
    assert percentile([float(n) for n in range(1, 101)], 50) == 50.0
    assert percentile([float(n) for n in range(1, 101)], 95) == 95.0


# --- meanwhile ------------------------------------------------------------------------------------


def test_step_is_a_line_with_its_seconds_once_it_is_done(clock: Clock) -> None:
    console = a_console()
    with Steps(console, clock) as step:
        with step("Local AWS"):
            clock.now = 12.3
            assert shown(console) == ""
        assert shown(console).split() == ["✓", "Local", "AWS", "12.3", "s"]


def test_step_that_fails_has_no_tick(clock: Clock) -> None:
    console = a_console()
    with pytest.raises(StackError), Steps(console, clock) as step, step("Local AWS"):
        raise StackError("why")
    assert shown(console) == ""


def test_steps_at_the_same_time_move_on_a_terminal(clock: Clock) -> None:
    console = a_console(is_terminal=True)
    steps = Steps(console, clock)
    with steps as step, step("Functions and layers"), step("Local AWS"):
        clock.now = 4.0
        steps._under_way.refresh()
        drawn = shown(console)
        for moment in ("Functions and layers", "Local AWS", "4.0 s"):
            assert moment in drawn


def test_bars_count_what_can_still_be_sent(clock: Clock) -> None:
    rows = [a_row(n) for n in range(1, 11)]
    console = a_console(is_terminal=True)
    with Bars(console, rows, has_receipts=True, clock=clock) as bars:
        rows[0].sent_at = PUBLISHED + 1
        deliver(rows[1])
        refuse(rows[2])
        clock.now = 1.0
        bars.show()
        bars._progress.refresh()
    drawn = shown(console)
    for name, count in {"sent": "2/9", "delivered": "1/9", "ended": " 2/10"}.items():
        assert any(name in line and count in line for line in drawn.splitlines()), name


def test_time_left_follows_from_the_rate(clock: Clock) -> None:
    rows = [a_row(n) for n in range(1, 101)]
    console = a_console()
    with Bars(console, rows, has_receipts=True, clock=clock) as bars:
        for second in range(1, 11):
            clock.now = float(second)
            for row in rows[2 * (second - 1) : 2 * second]:
                deliver(row)
            bars.show()
    last = shown(console).splitlines()[-1]
    assert last == "sent 20, delivered 20, ended 20 of 100; 2.0 a second; 0:40 left"


def test_first_that_is_delivered_is_shown_at_once_and_only_it(clock: Clock) -> None:
    rows = [a_row(1), a_row(2)]
    console = a_console()
    with Bars(console, rows, has_receipts=True, clock=clock) as bars:
        rows[1].sent_at = PUBLISHED + 0.4
        bars.show()
        assert shown(console) == ""
        deliver(rows[1])
        bars.show()
        first = shown(console)
        assert first.startswith("✓ First one delivered: orders.jsonl:2, id order-2")
        assert first.endswith(" 0.9 s\n")
        deliver(rows[0])
        bars.show()
        assert shown(console) == first


def test_elsewhere_than_on_a_terminal_a_line_comes_every_two_seconds(clock: Clock) -> None:
    console = a_console()
    with Bars(console, [a_row()], has_receipts=True, clock=clock) as bars:
        for tenth in range(41):
            clock.now = tenth / 10
            bars.show()
    lines = shown(console).splitlines()
    assert lines == ["sent 0, delivered 0, ended 0 of 1"] * 2
    assert "\x1b" not in shown(console)


# --- what is published ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.json", "empty.jsonl"])
@pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
def test_empty_file_is_refused_with_what_to_write_into_it(
    tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(StackError, match=r"is empty: write a request into it, as in events/01"):
        read_rows([file])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"cannot read .*nowhere\.json \(No such file.*: name a"):
        read_rows([tmp_path / "nowhere.json"])


def test_cut_off_file_is_read_as_it_stands_with_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "cut-off.json"
    file.write_text('{"id": "order-1", "to": ')
    [row] = read_rows([file])
    assert "is not JSON" in row.problem
    assert row.text == file.read_text()
