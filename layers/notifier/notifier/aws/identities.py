"""Who a phone number is on WhatsApp: memory, then the table. BLiP's look-up is the caller's.

    key          BOT/+E164 (partition key)
    address      the identity, as BLiP gave it; absent where BLiP refused the number
    code         BLiP's reason code for the refusal
    good_until   epoch milliseconds
    token, lease_until  of the sandbox that is looking it up
    expires_at   epoch seconds, time to live

Of a recipient who was forgotten there is for a while, so that no older request is sent:

    key           forgotten: and a digest of the number, which trying all numbers would undo
    forgotten_at  epoch milliseconds
    expires_at    epoch seconds, time to live: until SQS has deleted whatever was published before

The bots' items (see `bot_items`) and their templates (see `templates`) lie in the same table, so
that one call reads all that a batch needs.
"""

import hashlib
import random
from typing import TYPE_CHECKING
from uuid import uuid4

from notifier.aws.bot_items import bot_key, bot_state
from notifier.aws.memory import Memory
from notifier.aws.table import Item, Table, UnreadError, milliseconds
from notifier.aws.templates import DynamoDbTemplates, TemplateName, template_key
from notifier.domain.bot_state import BotState
from notifier.domain.recipients import Identity, LookUpLease
from notifier.domain.templates import RegisteredTemplate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A day longer than SQS keeps a request.
FORGOTTEN_SECONDS = 15 * 86_400

type Recipient = tuple[str, str]


class DynamoDbIdentities:
    """The identities' table with this sandbox's memory in front. Thread-safe."""

    def __init__(
        self,
        table: Table,
        *,
        templates: DynamoDbTemplates,
        now: "Callable[[], float]",
        ttl_seconds: int,
        negative_ttl_seconds: int,
        uniform: "Callable[[float, float], float]" = random.uniform,
    ) -> None:
        self._table = table
        self._templates = templates
        self._now = now
        self._ttl_seconds = ttl_seconds
        self._negative_ttl_seconds = negative_ttl_seconds
        self._uniform = uniform
        self._memory: Memory[Recipient, Identity] = Memory(now)

    def read(
        self,
        recipients: "Iterable[Recipient]",
        bots: "Iterable[str]",
        templates: "Iterable[TemplateName]",
    ) -> tuple[
        dict[Recipient, Identity], dict[str, BotState], dict[TemplateName, RegisteredTemplate]
    ]:
        """Return what is known of these recipients, bots and templates, with one call.

        What the table leaves unread of recipients and templates is simply not known: a lease finds
        it. Whether a recipient was forgotten is never remembered, but read each time.

        Raises:
            UnreadError: DynamoDB left a mark of a forgotten recipient, or a bot, unread.
        """
        identities: dict[Recipient, Identity] = {}
        unknown: dict[str, Recipient] = {}
        marks: dict[str, list[Recipient]] = {}
        for recipient in recipients:
            marks.setdefault(forgotten_key(recipient[1]), []).append(recipient)
            if (remembered := self._memory.get(recipient)) is not None:
                identities[recipient] = remembered
            else:
                unknown[_key(recipient)] = recipient
        states = {bot_key(bot): bot for bot in bots}
        registered = {name: self._templates.remembered(name) for name in templates}
        not_read = {template_key(name): name for name, found in registered.items() if not found}

        items, unread = self._table.get_many([*marks, *states, *unknown, *not_read])
        if unread & (marks.keys() | states.keys()):
            raise UnreadError
        found = {item["key"]: item for item in items}
        for key, recipient in unknown.items():
            if (identity := self._good(recipient, found.get(key, {}))) is not None:
                identities[recipient] = identity
        for key, those in marks.items():
            if key in found:
                mark = Identity(None, forgotten_at=found[key]["forgotten_at"] / 1000)
                identities |= dict.fromkeys(those, mark)
        for key, name in not_read.items():
            if key not in unread:
                registered[name] = self._templates.remember(name, found.get(key, {}))
        return (
            identities,
            {bot: bot_state(found[key]) for key, bot in states.items() if key in found},
            {name: template for name, template in registered.items() if template is not None},
        )

    def get(self, recipient: Recipient) -> Identity | None:
        """Read one recipient from the table, as it stands now."""
        return self._good(recipient, self._table.get(_key(recipient)))

    def lease(self, recipient: Recipient, seconds: float) -> LookUpLease | Identity | None:
        """Take the right to look a recipient up.

        Returns:
            The lease; or the identity, if it is known by now; or None, if another sandbox has it.
        """
        now = milliseconds(self._now())
        token = uuid4().hex
        _, item = self._table.update(
            _key(recipient),
            "SET #token = :token, lease_until = :lease_until, expires_at = :expires_at",
            "(attribute_not_exists(good_until) OR good_until <= :now)"
            " AND (attribute_not_exists(lease_until) OR lease_until < :now)",
            {
                ":token": token,
                ":lease_until": milliseconds(self._now() + seconds),
                ":now": now,
                ":expires_at": round(self._now()) + self._negative_ttl_seconds,
            },
        )
        if item.get("token") == token:
            return LookUpLease(recipient, token)
        return self._good(recipient, item)

    def store(self, lease: LookUpLease, identity: Identity) -> None:
        """Keep what BLiP answered, and end the lease.

        The time to live is shortened at random, so that what was learnt together is not
        forgotten together.
        """
        known = identity.address is not None
        ttl = self._ttl_seconds if known else self._negative_ttl_seconds
        good_until = self._now() + self._uniform(0.9 * ttl, ttl)
        fact = "address = :fact REMOVE code," if known else "code = :fact REMOVE address,"
        kept, _ = self._table.update(
            _key(lease.recipient),
            f"SET good_until = :good_until, expires_at = :expires_at, {fact} #token, lease_until",
            "#token = :token",
            {
                ":good_until": milliseconds(good_until),
                ":expires_at": round(good_until),
                ":fact": identity.address if known else identity.code,
                ":token": lease.token,
            },
        )
        if kept:  # else the recipient was forgotten, or another sandbox has the lease
            self._memory.keep(lease.recipient, identity, good_until)

    def release(self, lease: LookUpLease) -> None:
        """End the lease without an answer, so that no sandbox waits for it."""
        self._table.update(
            _key(lease.recipient),
            "REMOVE #token, lease_until",
            "#token = :token",
            {":token": lease.token},
        )

    def invalidate(self, recipient: Recipient) -> None:
        """Drop what is known of a recipient: BLiP says that it is out of date."""
        self._memory.drop(recipient)
        self._table.update(
            _key(recipient), "REMOVE address, code, good_until", "attribute_exists(#key)", {}
        )

    def holds(self, recipient: Recipient) -> bool:
        """Return whether the table has anything on a recipient."""
        return bool(self._table.get(_key(recipient)))

    def erase(self, recipient: Recipient) -> None:
        """Delete whatever the table, and this sandbox's memory, have on a recipient."""
        self._memory.drop(recipient)
        self._table.delete(_key(recipient))

    def mark_forgotten(self, phone: str) -> None:
        """Block requests to this number that were published before now."""
        now = self._now()
        self._table.update(
            forgotten_key(phone),
            "SET forgotten_at = :now, expires_at = :expires_at",
            "",
            {":now": milliseconds(now), ":expires_at": round(now) + FORGOTTEN_SECONDS},
        )

    def _good(self, recipient: Recipient, item: Item) -> Identity | None:
        good_until = item.get("good_until", 0) / 1000
        if good_until <= self._now():
            return None
        identity = Identity(item.get("address"), item.get("code"))
        self._memory.keep(recipient, identity, good_until)
        return identity


def forgotten_key(phone: str) -> str:
    """Name the item that says that a number was forgotten, without the number."""
    return f"forgotten:{hashlib.sha256(phone.encode()).hexdigest()}"


def _key(recipient: Recipient) -> str:
    bot, phone = recipient
    return f"{bot}/{phone}"
