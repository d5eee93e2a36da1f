"""What a run has seen and done."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from notifier.use_cases.redrive_failures.orders import Candidate


class RedriveOutcome(StrEnum):
    """What a run does with a dead letter that was selected."""

    LISTED = "listed"
    WOULD_REDRIVE = "would_redrive"
    REDRIVEN = "redriven"
    REFUSED = "refused"
    NOT_TAKEN = "not_taken"  # SQS did not take it; a log line says why


@dataclass(slots=True)
class _Group:
    count: int = 0
    oldest: float = float("inf")
    newest: float = 0.0


@dataclass(slots=True)
class Report:
    """What a run has seen and done.

    Attributes:
        in_flight: about how many dead letters were in flight elsewhere meanwhile.
        each: whether each dead letter is reported.
        scanned: how many dead letters the run has seen, selected or not.
        more: whether there are more than SQS can keep in flight; the rest was not scanned.
    """

    in_flight: int
    each: bool
    scanned: int = 0
    more: bool = False
    outcomes: dict[RedriveOutcome, int] = field(default_factory=dict)
    groups: dict[tuple[RedriveOutcome, str, str | None, str | None, str | None], _Group] = field(
        default_factory=dict
    )
    dead_letters: list[dict[str, Any]] = field(default_factory=list)

    def add(self, candidate: Candidate, outcome: RedriveOutcome, why: str | None = None) -> None:
        """Add what became of a dead letter."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        dead_letter = candidate.dead_letter
        group = self.groups.setdefault(
            (outcome, candidate.reason, dead_letter.bot, candidate.template, why), _Group()
        )
        group.count += 1
        group.oldest = min(group.oldest, dead_letter.failed_at)
        group.newest = max(group.newest, dead_letter.failed_at)
        if not self.each:
            return
        self.dead_letters.append(
            {
                "outcome": outcome,
                "why": why,
                "id": dead_letter.notification_id,
                "bot": dead_letter.bot,
                "template": candidate.template,
                "reason": candidate.reason,
                "code": dead_letter.failure.get("code"),
                "detail": dead_letter.failure.get("detail"),
                "fields": _fields(dead_letter.failure.get("fields")),
                "failed_at": _iso(dead_letter.failed_at),
                "generation": dead_letter.generation,
                "redrives": dead_letter.redrives,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON; the largest group first."""
        answer: dict[str, Any] = {
            "scanned": self.scanned,
            "in_flight": self.in_flight,
            "more": self.more,
            "groups": [
                {
                    "outcome": outcome,
                    "reason": reason,
                    "bot": bot,
                    "template": template,
                    "why": why,
                    "count": group.count,
                    "oldest": _iso(group.oldest),
                    "newest": _iso(group.newest),
                }
                for (outcome, reason, bot, template, why), group in sorted(
                    self.groups.items(), key=lambda item: (item[0][0], -item[1].count)
                )
            ],
        }
        if self.each:
            answer["dead_letters"] = sorted(
                self.dead_letters, key=lambda dead_letter: str(dead_letter["failed_at"])
            )
        return answer


def _fields(written: object) -> list[str]:
    """Return each broken field with its problem. The queue's writers are not all ours."""
    fields = written if isinstance(written, list) else []
    return [f"{one.get('field')}: {one.get('problem')}" for one in fields if isinstance(one, dict)]


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
