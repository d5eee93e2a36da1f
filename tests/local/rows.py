"""The requests that are published: what is known of each, before and after."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notifier.contract.parse import Parsed, parse
from notifier.contract.problems import InvalidRequest
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key
from tests.local.machine import StackError


@dataclass(slots=True)
class Row:
    """One published request.

    Attributes:
        line: its number among all that are published, from 1.
        source: its file, and the line in it where it is one of many.
        body: what is published, byte by byte.
        parsed: the request, where it is a valid one.
        problem: what breaks the contract, where it is not.
        id, bot, template: as far as they are readable.
        key: of its item in the ledger, where it is valid.
        repeats: the source of an earlier request with the same id and content; it is dropped.
        status, reason, attempts, detail: how it ended, or stands.
        published_at, sent_at, delivered_at, ended_at: in seconds since 1970; None before that.
    """

    line: int
    source: str
    body: bytes
    parsed: Parsed | None = None
    problem: str = ""
    id: str | None = None
    bot: str | None = None
    template: str | None = None
    key: str | None = None
    status: str | None = None
    reason: str | None = None
    attempts: int | None = None
    repeats: str | None = None
    detail: str = ""
    published_at: float | None = None
    sent_at: float | None = None
    delivered_at: float | None = None
    ended_at: float | None = None

    @classmethod
    def read(cls, line: int, source: str, body: bytes) -> "Row":
        row = cls(line, source, body)
        try:
            row.parsed = parse(row.text or "")
        except InvalidRequest as broken:
            row.id, row.bot, row.template = broken.notification_id, broken.bot, broken.template
            row.problem = broken.detail
        else:
            request = row.parsed.request
            row.id, row.bot, row.template = request.id, request.bot, request.template.name
            row.key = ledger_key(request.bot, request.id)
        return row

    @property
    def text(self) -> str | None:
        """The body as SQS carries it; None for what is no text."""
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            return None

    @property
    def pending(self) -> bool:
        return self.published_at is not None and self.ended_at is None

    @property
    def outcome(self) -> str:
        """How it ended, in one word of the contract."""
        return str(self.reason or self.status) if self.ended_at else "not ended"

    @property
    def cause(self) -> str:
        """What explains the outcome; empty where nothing needs an explanation."""
        if self.ended_at is None:
            return (
                f"still {self.status or 'on the queue'}" if self.published_at else "not published"
            )
        return f"dropped: the same as {self.repeats}" if self.repeats else self.detail

    def took(self, at: float | None) -> float | None:
        """Return how long after publishing something came; None if it did not, or for a repetition.

        A repetition stands where the first of its kind had come before.
        """
        if at is None or self.published_at is None or self.repeats:
            return None
        return max(0.0, at - self.published_at)

    def end(self, status: str, reason: str | None, at: float) -> None:
        self.status, self.reason = status, reason
        # A repeated request ended before it was published, with the first of its kind.
        self.ended_at = max(at, self.published_at or at)

    def as_json(self) -> dict[str, Any]:
        return {
            "line": self.line,
            "id": self.id,
            "bot": self.bot,
            "status": self.status,
            "reason": self.reason,
            "attempts": self.attempts,
            "published_at": _iso(self.published_at),
            "ended_at": _iso(self.ended_at),
        }


def read_rows(files: Iterable[Path]) -> list[Row]:
    """Make a row of every file, and of every line of a `.jsonl` file, exactly as it stands.

    Raises:
        StackError: a file cannot be read, or holds nothing that could be published.
    """
    rows: list[Row] = []
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StackError(
                f"cannot read {path} ({error.strerror}): name a .json file of one request, or a"
                " .jsonl file of one on each line"
            ) from None
        if not content.strip():
            raise StackError(f"{path} is empty: write a request into it, as in events/01-text.json")
        if path.suffix == ".jsonl":
            for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
                rows.append(Row.read(len(rows) + 1, f"{path.name}:{number}", line))
        else:
            rows.append(Row.read(len(rows) + 1, path.name, content))
    return rows


def expected_reason(sample: str) -> Reason | None:
    """Return how a file of `events/` should end: with the reason in its name, or delivered."""
    name = Path(sample).stem.partition("-")[2].replace("-", "_")
    return Reason(name) if name in set(Reason) else None


def as_expected(row: Row) -> bool:
    """Return whether a sample ended as its name says."""
    expected = expected_reason(row.source)
    return row.reason == expected if expected else row.reason is None and row.ended_at is not None


def now() -> float:
    """Return seconds since 1970."""
    # In whole milliseconds, as all other times here, so that they can be compared.
    return int(time.time() * 1000) / 1000


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
