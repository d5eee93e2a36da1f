"""A notification that was sent, and what records its receipts."""

import json
from collections.abc import Callable
from typing import Any

from notifier.aws.table import Item
from notifier.blip.receipts import receipt
from notifier.domain.notification import message_id
from notifier.domain.receipts import Receipt
from notifier.domain.status import Status
from notifier.use_cases.record_receipt import ReceiptOutcome, Receipts
from tests.support.builders import a_request
from tests.support.world import Sandbox, World
from tests.unit.blip.receipt_envelopes import KEY, envelope


class Crash(Exception):
    """The sandbox ends here."""


class Mortal:
    """Passes calls on, and crashes before or after a given one."""

    def __init__(self, real: Any, countdown: list[float]) -> None:
        self._real = real
        self._countdown = countdown

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._countdown[0] -= 0.5
            if self._countdown[0] == 0:
                raise Crash(f"before {name}")
            result = getattr(self._real, name)(*args, **kwargs)
            self._countdown[0] -= 0.5
            if self._countdown[0] == 0:
                raise Crash(f"after {name}")
            return result

        return call


class Case:
    """One notification that was sent, and what records its receipts."""

    def __init__(self, **changes: Any) -> None:
        self.world = World()
        self.sandbox: Sandbox = self.world.sandbox()
        self.request = a_request(id="order-1", metadata={"order": "1"}) | changes
        self.body = json.dumps(self.request)
        self.paused: list[tuple[str, str, str]] = []
        self.receipts = self.recorder()
        self.send()

    def recorder(self, countdown: list[float] | None = None) -> Receipts:
        limit = countdown or [float("inf")]

        def mortal(part: object) -> Any:
            return Mortal(part, limit)

        return Receipts(
            ledger=mortal(self.sandbox.ledger),
            waiting=mortal(self.sandbox.ledger),
            identities=mortal(self.sandbox.identities),
            bot_states=mortal(self.sandbox.bot_states),
            templates=mortal(self),
            dead_letters=mortal(self.world.dead_letters),
            meter=self.world.meter,
            now=self.world.clock.now,
            uniform=lambda low, high: (low + high) / 2,
        )

    def pause(self, bot: str, name: str, language: str) -> None:
        """Stand in for the templates: note one that is paused."""
        self.paused.append((bot, name, language))

    def send(self, generation: int | None = None) -> str:
        """Deliver the request. Return the outcome."""
        queued = self.world.queued(self.body, generation=generation)
        (result,) = self.sandbox.deliver(queued)
        return result.outcome

    def record(self, status: str, code: int | None = None, generation: int = 1) -> ReceiptOutcome:
        self.world.clock.advance(1)
        return self.receipts.record(a_receipt(status, code, generation))

    def waits(self) -> float:
        """Return for how long the next generation waits from now on, in seconds."""
        assert self.item["status"] == "waiting"
        assert self.item["wake_shard"] == KEY[0]
        return float(self.item["wake_at"] / 1000 - self.world.clock.now())

    @property
    def item(self) -> Item:
        return self.world.entry(self.request)

    @property
    def bot(self) -> Item:
        return self.world.identities_table.get("bot:default")

    @property
    def published(self) -> list[tuple[str, int, str | None]]:
        """What upstream has heard from receipts: status, generation, reason."""
        return [
            (event.status.value, event.generation, event.reason)
            for event in self.world.events.published
            if event.status is not Status.SENT
        ]

    def timeline(self) -> list[tuple[str, int]]:
        return [(status, generation) for status, generation, _, _ in self.item["timeline"]]

    def late(self) -> list[tuple[str, int]]:
        """Return the receipts kept of older generations."""
        return [(status, generation) for status, generation, _, _ in self.item.get("late", ())]


def a_receipt(status: str, code: int | None = None, generation: int = 1) -> Receipt:
    document = envelope(status, id=message_id(KEY, generation))
    if code is not None:
        document["reason"] = {"code": code}
    about = receipt(document)
    assert about is not None
    return about
