"""Shows what became of the requests: a verdict, then a line for each, or figures for many."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tests.local.rows import Row, as_expected, expected_reason

# Of more requests than these, only those that failed have a line.
MAX_LINES = 50
INDENT = " " * 4


class Summary:
    """What became of the requests."""

    def __init__(self, rows: Sequence[Row], *, are_samples: bool, has_receipts: bool) -> None:
        """Make it.

        Args:
            rows: what was published.
            are_samples: whether their names say how they should end.
            has_receipts: whether it is known what was delivered.
        """
        self._rows = rows
        self._are_samples = are_samples
        self._word = "delivered" if has_receipts else "sent"

    def show(self, console: Console) -> None:
        """Print the verdict and what stands behind it."""
        is_good = all(map(self._is_good, self._rows))
        mark, style = ("✓", "bold green") if is_good else ("✗", "bold red")
        verdict = textwrap.fill(self.verdict(), console.width - 2, subsequent_indent="  ")
        console.print()
        console.print(Text.assemble((f"{mark} ", style), (verdict, "bold")), soft_wrap=True)
        console.print()
        failed = [row for row in self._rows if not self._is_good(row)]
        if len(self._rows) <= MAX_LINES:
            self._show_rows(console, self._rows)
            return
        self._show_figures(console)
        if failed:
            console.print()
            self._show_rows(console, failed[:MAX_LINES])
        if (left_out := len(failed) - MAX_LINES) > 0:
            console.print(f"  and {left_out} more: ARGS=--json has them all", highlight=False)

    def verdict(self) -> str:
        """Return one sentence: how many ended as they should, and how fast they were sent."""
        total = len(self._rows)
        good = sum(map(self._is_good, self._rows))
        arrived = sum(map(_has_arrived, self._rows))
        unended = sum(row.ended_at is None for row in self._rows)
        refused = total - arrived - unended
        parts = [f"{arrived} {self._word}"]
        if self._are_samples:
            text = f"{good} of {total} as expected: "
            parts += [f"{refused} refused" + (" as they should be" if good == total else "")]
        else:
            text = f"{good} of {total} {self._word}"
            parts = [f"{refused} not"] if refused else []
            text += ": " if parts or unended else ""
        if unended:
            parts.append(f"{unended} not ended")
        text += ", ".join(parts)
        if (median := percentile(self._seconds_to_sent(), 50)) is not None:
            text += f"; median {median:.1f} s to sent"
        return text

    def _is_good(self, row: Row) -> bool:
        return as_expected(row) if self._are_samples else _has_arrived(row)

    def _seconds_to_sent(self) -> list[float]:
        return [took for row in self._rows if (took := row.took(row.sent_at)) is not None]

    def _seconds_to_delivered(self) -> list[float]:
        return [took for row in self._rows if (took := row.took(row.delivered_at)) is not None]

    def _show_figures(self, console: Console) -> None:
        counts = Counter(row.outcome for row in self._rows)
        width = max(map(len, counts))
        for outcome, count in counts.most_common():
            console.print(f"  {outcome:{width}}  {count:7}", highlight=False)
        console.print(f"  {'in all':{width}}  {len(self._rows):7}", highlight=False)
        console.print()
        if (rate := self._rate()) is not None:
            console.print(f"  {rate:.1f} a second ended", highlight=False)
        for word, seconds in (
            ("sent", self._seconds_to_sent()),
            ("delivered", self._seconds_to_delivered()),
        ):
            p50, p95 = percentile(seconds, 50), percentile(seconds, 95)
            if p50 is not None and p95 is not None:
                console.print(f"  to {word:9}  p50 {p50:6.1f} s  p95 {p95:6.1f} s", highlight=False)

    def _rate(self) -> float | None:
        """Return how many ended a second, from the first published to the last ended."""
        began = [row.published_at for row in self._rows if row.published_at is not None]
        ended = [row.ended_at for row in self._rows if row.ended_at is not None]
        if not (began and ended and max(ended) > min(began)):
            return None
        return len(ended) / (max(ended) - min(began))

    def _show_rows(self, console: Console, rows: Sequence[Row]) -> None:
        """Print one line for each, with the cause on a line below.

        What can be long comes last, so that a line that is too long breaks there.
        """
        source = max(len(row.source) for row in rows)
        outcome = max(len(row.outcome) for row in rows)
        for row in rows:
            is_good = self._is_good(row)
            took = row.took(row.ended_at)
            style = "green" if is_good else "red"
            line = Text.assemble(
                ("✓ " if is_good else "✗ ", style),
                f"{row.source:{source}} ",
                (f"{row.outcome:{outcome}}", style),
                f" {took:5.1f} s" if took is not None else " " * 8,
                f" {row.id or ''}".rstrip(),
            )
            console.print(line, soft_wrap=True)
            cause = row.cause
            if self._are_samples and not is_good:
                should = expected_reason(row.source) or self._word
                cause = f"should be {should}" + (f"; {cause}" if cause else "")
            if cause:
                console.print(Text(_indented(cause, console.width), "dim"), soft_wrap=True)


def _indented(text: str, width: int) -> str:
    return textwrap.fill(
        text, width, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False
    )


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the least value that so many percent do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _has_arrived(row: Row) -> bool:
    return row.ended_at is not None and row.reason is None and row.status != "cancelled"
