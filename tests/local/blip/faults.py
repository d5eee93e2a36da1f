"""What goes wrong on purpose: rules made at run time, and the numbers that always do the same."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from tests.local.blip.settings import Model

type Kind = Literal[
    "messages", "notifications", "commands", "lookups", "history", "templates", "ping", "*"
]


class Fault(Model):
    """A rule: what it matches, how often it strikes, and what it does.

    Attributes:
        path: `commands` is every command; `lookups`, `history`, `templates` and `ping` are some
            of them.
        template: a message's, or the one that a list of templates is asked for by name.
        to: a phone number with '+', or an identity.
        text: a message that holds this text somewhere in its content, as in one order's number.
        after: how many matches pass before it strikes, as in the first pages of a list.
        probability: of striking where it matches.
        times: how often it strikes in all.
        each: how often it strikes for one message id (a command: for one phone or history id).
        every: it strikes the first of every so many matches.
        start, end: seconds after it was added during which it holds.

        latency_seconds: wait before processing, plus up to jitter_seconds.
        answer_latency_seconds: wait after processing.
        accept: process the envelope before misbehaving (a message is then delivered); false by
            default with status, drop and hang.
        status: answer with this HTTP status, `headers` and `body` (an object, or text as it is).
        code: the body is the bare reason with this code.
        failure: a command is answered 200, status failure, with this code.
        empty: a question to the history, or for templates, is answered with an empty list.
        drop: close the connection without an answer.
        hang: never answer.
        truncate: send half of the answer, then close.
        dribble_seconds: send the answer byte by byte, one each so many seconds.
        receipt: the message is accepted and fails later with this code.
        events: the message gets these events only; [] is none, ever.
    """

    path: Kind = "*"
    bot: str | None = None
    to: str | None = None
    template: str | None = None
    text: str | None = None

    after: int = Field(default=0, ge=0)
    probability: float = Field(default=1, ge=0, le=1)
    times: int | None = Field(default=None, ge=1)
    each: int | None = Field(default=None, ge=1)
    every: int = Field(default=1, ge=1)
    start: float = 0
    end: float | None = None

    latency_seconds: float = 0
    jitter_seconds: float = 0
    answer_latency_seconds: float = 0
    accept: bool | None = None
    status: int | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] | list[Any] | str | None = None
    code: int | None = None
    failure: int | None = None
    empty: bool = False
    drop: bool = False
    hang: bool = False
    truncate: bool = False
    dribble_seconds: float = 0
    receipt: int | None = None
    events: list[str] | None = None

    _number: int = PrivateAttr(default=0)
    _added: float = PrivateAttr(default=0)
    _matches: int = PrivateAttr(default=0)
    _strikes: int = PrivateAttr(default=0)
    _struck: Counter[str | None] = PrivateAttr(default_factory=Counter)

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.failure is not None and self.path in {"messages", "notifications"}:
            raise ValueError("only a command has a failure: use status and code")
        if self.empty and self.path not in {"history", "templates"}:
            raise ValueError("only the history and the list of templates are empty")
        if self.text is not None and self.path != "messages":
            raise ValueError("only messages hold a text")
        if self.code is not None and self.status is None:
            raise ValueError("code needs status: it is the body's bare reason")
        return self

    @property
    def accepts(self) -> bool:
        """Whether the envelope is processed although the answer is not the usual one."""
        if self.accept is not None:
            return self.accept
        return self.status is None and not (self.drop or self.hang)

    def strikes(
        self,
        kind: str,
        bot: str,
        template: str | None,
        key: str | None,
        now: float,
        dice: random.Random,
    ) -> bool:
        """Whether the rule strikes this envelope, whose recipient and text match already."""
        if self.path not in ("*", kind) and not (self.path == "commands" and kind in _COMMANDS):
            return False
        if self.bot not in (None, bot) or self.template not in (None, template):
            return False
        age = now - self._added
        if age < self.start or (self.end is not None and age >= self.end):
            return False
        if self.times is not None and self._strikes >= self.times:
            return False
        if self.each is not None and self._struck[key] >= self.each:
            return False
        self._matches += 1
        nth = self._matches - 1 - self.after
        if nth < 0 or nth % self.every or dice.random() >= self.probability:
            return False
        self._strikes += 1
        if self.each is not None:
            self._struck[key] += 1
        return True

    def report(self) -> dict[str, Any]:
        return {"number": self._number, "strikes": self._strikes} | self.model_dump(
            exclude_defaults=True
        )


_COMMANDS = frozenset({"lookups", "history", "templates", "ping", "other"})


class Faults:
    """The rules in force. Of those that match, the first one added that strikes does.

    Attributes:
        random: what probabilities are drawn from.
    """

    def __init__(self) -> None:
        self._rules: list[Fault] = []
        self._count = 0
        self.random = random.Random()
        self.restart_magic()

    def add(self, fault: Fault, now: float) -> Fault:
        self._count += 1
        fault._number = self._count
        fault._added = now
        self._rules.append(fault)
        return fault

    def remove(self, number: int | None = None) -> None:
        """Remove one rule, or all of them."""
        self._rules = [] if number is None else [r for r in self._rules if r._number != number]

    def restart_magic(self) -> None:
        """Make the magic numbers forget whom they have struck."""
        self._magic = magic_numbers()

    def report(self) -> list[dict[str, Any]]:
        return [rule.report() for rule in self._rules]

    def find(
        self,
        kind: str,
        bot: str,
        recipient: Iterable[str | None],
        template: str | None,
        key: str | None,
        content: Any,
        now: float,
    ) -> Fault | None:
        """The rule that strikes an envelope, if any.

        Args:
            kind: as in Fault.path, never `commands`.
            bot: its name.
            recipient: the phone and the identity it goes to or asks about.
            template: its name, for messages and for a question about one template.
            key: what `each` counts by.
            content: of a message.
            now: monotonic seconds.
        """
        recipient = tuple(recipient)
        for rule in self._rules:
            if rule.to is not None and rule.to not in recipient:
                continue
            if rule.text is not None and not _holds(content, rule.text):
                continue
            if rule.strikes(kind, bot, template, key, now, self.random):
                return rule
        for rule in self._magic.get(recipient[0] or "", ()):
            if rule.strikes(kind, bot, template, key, now, self.random):
                return rule
        return None


def _holds(content: Any, text: str) -> bool:
    if isinstance(content, str):
        return text in content
    entries = content.values() if isinstance(content, dict) else content
    return isinstance(content, dict | list) and any(_holds(entry, text) for entry in entries)


def magic_numbers() -> dict[str, list[Fault]]:
    """The rules of the magic numbers, by phone."""
    return {
        f"{_MAGIC_PREFIX}{number:03}": [Fault.model_validate(rule) for rule in rules]
        for number, (_, *rules) in MAGIC.items()
    }


def magic_table() -> str:
    """The magic numbers as text."""
    return "\n".join(f"  {_MAGIC_PREFIX}{number:03}  {row[0]}" for number, row in MAGIC.items())


type _Row = tuple[str, *tuple[dict[str, Any], ...]]


def _lookup_fails(code: int, meaning: str) -> _Row:
    return f"look-up: failure {code}, {meaning}", {"path": "lookups", "failure": code}


def _receipt_fails(code: int, meaning: str) -> _Row:
    return f"receipt: failed {code}, {meaning}", {"path": "messages", "receipt": code}


def _message(meaning: str, **rule: Any) -> _Row:
    return f"message: {meaning}", {"path": "messages", **rule}


_MAGIC_PREFIX = "+5531900000"

# By the last three digits.
MAGIC: dict[int, _Row] = {
    1: _message("accepted, then no event ever", events=["accepted"]),
    2: _message("accepted, dispatched, never received", events=["accepted", "dispatched"]),
    3: _message("received, never consumed", events=["accepted", "dispatched", "received"]),
    4: _message("202, and it is delivered, but no event ever", events=[]),
    16: _receipt_fails(131016, "WhatsApp unavailable (speaks for the whole bot)"),
    24: _message("400 with reason 24", status=400, code=24),
    26: _receipt_fails(131026, "recipient cannot be reached"),
    31: _receipt_fails(131031, "account locked (speaks for the whole bot)"),
    42: _receipt_fails(131042, "payment problem (speaks for the whole bot)"),
    47: _receipt_fails(131047, "outside the 24 hours"),
    48: _receipt_fails(131048, "spam rate limit of the number"),
    49: _receipt_fails(131049, "too much marketing for this recipient"),
    50: _receipt_fails(131050, "the recipient has stopped marketing"),
    53: _receipt_fails(131053, "media cannot be fetched"),
    56: _receipt_fails(131056, "too much to this recipient, each time"),
    57: (
        "receipt: failed 131056, too much to this recipient, for the 1st, 3rd, 5th… message",
        {"path": "messages", "receipt": 131056, "every": 2},
    ),
    61: _lookup_fails(61, "not a phone number"),
    63: _receipt_fails(131063, "marketing is turned off for the account"),
    64: _receipt_fails(131064, "messaging limit, a penalty on the account"),
    67: _lookup_fails(67, "has no WhatsApp (as on premises)"),
    81: _lookup_fails(81, "as for a bot without a WhatsApp channel"),
    83: _lookup_fails(83, "has no WhatsApp (as on premises)"),
    85: (
        "look-up: failure 85, too many requests, the first time",
        {"path": "lookups", "failure": 85, "times": 1},
    ),
    86: _receipt_fails(86, "the gateway timed out: it may have been sent"),
    87: _receipt_fails(87, "the recipient has blocked the bot"),
    115: _receipt_fails(132015, "the template is paused"),
    116: _receipt_fails(132016, "the template is disabled"),
    130: _receipt_fails(130429, "over WhatsApp's throughput"),
    149: (
        "receipt: failed 131049, too much marketing for this recipient, for the first message",
        {"path": "messages", "receipt": 131049, "times": 1},
    ),
    368: _receipt_fails(368, "account blocked (speaks for the whole bot)"),
    472: _receipt_fails(130472, "part of an experiment without marketing"),
    202: _message("202, but it is lost: never delivered, no event", status=202),
    408: _message("no answer, ever; not accepted (first time per id)", hang=True, each=1),
    409: _message("no answer, ever; accepted (first time per id)", hang=True, accept=True, each=1),
    429: _message("429 (first time per id)", status=429, code=34, each=1),
    444: _message("connection dropped, not accepted (first time per id)", drop=True, each=1),
    445: _message(
        "connection dropped, accepted (first time per id)", drop=True, accept=True, each=1
    ),
    500: _message("500, not accepted (first time per id)", status=500, each=1),
    503: _message("503, not accepted (first time per id)", status=503, each=1),
    504: _message("504, accepted (first time per id)", status=504, accept=True, each=1),
}
