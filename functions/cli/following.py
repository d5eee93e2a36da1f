"""`publish --wait`: what becomes of requests that were just published, until each has ended."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from functions.cli import bots, output
from functions.cli.stack import Stack
from notifier.aws.outbox import REFUSED
from notifier.aws.table import Item, Table
from notifier.contract.parse import Parsed
from notifier.domain.notification import ledger_key
from notifier.domain.status import UNDELIVERED, Status

if TYPE_CHECKING:
    from functions.cli.publishing import Published

POLL_SECONDS = 1.0
# If nothing changes for so long, the requests wait for something that this command cannot see.
PATIENCE_SECONDS = 600.0
DELIVERED = {Status.RECEIVED, Status.CONSUMED}
# Of more requests than this, only failures are shown one by one.
MAX_SHOWN = 20


@dataclass(slots=True)
class Followed:
    """A published request, and how it stands.

    Attributes:
        key: of its item in the ledger.
        status: as the ledger has it; None until a function has taken it up.
        reason: why it ended without delivery.
        ended: whether it was delivered, or failed, or was cancelled.
        wakes_at: until when it waits to be sent again, in epoch seconds.
    """

    published: "Published"
    key: str
    status: str | None = None
    reason: str | None = None
    ended: bool = False
    wakes_at: float | None = None

    @property
    def delivered(self) -> bool:
        """Whether it is on the recipient's phone."""
        return self.status in DELIVERED

    def waits_until_after(self, moment: float) -> bool:
        """Return whether it waits to be sent again, and still does at a time in epoch seconds."""
        return self.wakes_at is not None and self.wakes_at > moment

    def read(self, items: dict[str, Item]) -> bool:
        """Take over what the ledger says; return whether that is anything new."""
        before = (self.status, self.reason)
        refusals = items.get(self.key + REFUSED, {}).get("refusals", ())
        mine = self.published.record_id
        own = [reason for record_id, reason, *_ in refusals if record_id == mine]
        item = items.get(self.key, {})
        if own:
            self.status, self.reason, self.ended = Status.REJECTED, own[0], True
        elif item and self._is_of(item):
            self.status, self.reason = item["status"], item.get("reason")
            self.wakes_at = item["wake_at"] / 1000 if "wake_at" in item else None
            failed = self.status in UNDELIVERED
            self.ended = failed or self.delivered or self.status == Status.CANCELLED
        return (self.status, self.reason) != before

    def _is_of(self, item: Item) -> bool:
        """Return whether an item is this request's, or was cancelled before it came."""
        content = self.published.message.content
        if not isinstance(content, Parsed):
            return False
        return bool(item.get("content_hash", content.content_hash) == content.content_hash)


def follow(
    read: Callable[[list[str]], Iterable[Item]],
    followed: Sequence[Followed],
    changed: Callable[[Followed], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
) -> bool:
    """Read the ledger until each request has ended; return False if nothing changes any more.

    Requests that wait for longer than PATIENCE_SECONDS are not waited for.

    Args:
        read: returns the items of the ledger with these keys.
        followed: the requests. They are updated.
        changed: called for each change.
        sleep: waits for some seconds.
        now: a clock that never goes back.
        wall: the time, in epoch seconds.
    """
    changed_at = now()
    while left := [
        one
        for one in followed
        if not (one.ended or one.waits_until_after(wall() + PATIENCE_SECONDS))
    ]:
        keys = [key for one in left for key in (one.key, one.key + REFUSED)]
        items = {item["key"]: item for item in read(list(dict.fromkeys(keys)))}
        for one in left:
            if one.read(items):
                changed_at = now()
                changed(one)
        if now() - changed_at > PATIENCE_SECONDS:
            return False
        if not all(one.ended for one in left):
            sleep(POLL_SECONDS)
    return True


def show(stack: Stack, published: "Sequence[Published]", *, as_json: bool) -> int:
    """Show what becomes of published requests; return 0 if all were delivered."""
    followed, lost = _followed(published)
    table = Table(stack.client("dynamodb"), stack.physical_id("LedgerTable"))
    for name in dict.fromkeys(one.published.message.bot for one in followed):
        if not as_json:
            bots.warn(stack, name)
    each = len(followed) <= MAX_SHOWN

    def changed(one: Followed) -> None:
        shown = each or (one.ended and not one.delivered)
        if shown and not as_json:
            output.say_exactly(_line(one))
        progress(sum(other.ended for other in followed))

    interrupted = moving = False
    try:
        with output.bar("ended", len(followed)) as progress:
            moving = follow(lambda keys: table.get_many(keys)[0], followed, changed)
    except KeyboardInterrupt:
        interrupted = True
    if as_json:
        output.print_json([_as_json(one) for one in followed])
    else:
        _conclude(stack, followed, lost, "stopped" if interrupted else "" if moving else "stuck")
    if interrupted:
        return 130
    return 0 if not lost and all(one.delivered for one in followed) else 1


def _followed(published: "Sequence[Published]") -> "tuple[list[Followed], list[Published]]":
    """Return the requests that can be followed, and those without a readable id."""
    followed: list[Followed] = []
    lost: list[Published] = []
    for one in published:
        if one.record_id and one.message.notification_id:
            key = ledger_key(one.message.bot, one.message.notification_id)
            followed.append(Followed(one, key))
        else:
            lost.append(one)
    return followed, lost


def _line(one: Followed) -> str:
    ended = f"{one.status}: {one.reason}" if one.reason else one.status
    if one.wakes_at is not None:
        ended = f"{one.status} until {output.moment(one.wakes_at)}"
    return f"{time.strftime('%H:%M:%S')}  {one.published.message.notification_id}  {ended}"


def _conclude(
    stack: Stack, followed: "Sequence[Followed]", lost: "Sequence[Published]", why: str
) -> None:
    """Count how the requests ended, and show the next command."""
    counts = Counter(
        "delivered" if one.delivered else one.reason or one.status if one.ended else _stage(one)
        for one in followed
    )
    output.say()
    output.say(", ".join(f"{number:,} {what}" for what, number in counts.most_common()))
    for one in lost:
        what = f"SQS did not take it: {one.refusal}" if one.refusal else "its id is not readable"
        output.say(f"{one.message.source} cannot be followed: {what}")
    failed = [one for one in followed if one.ended and not one.delivered]
    if any(one.status == Status.WAITING for one in followed):
        output.say("Those that wait are sent again without this command.")
    if why == "stopped":
        output.say("Those under way go on without this command.")
    if why == "stuck":
        output.say("Nothing has changed for ten minutes.")
        output.next_step("See what they wait for", stack.command("status"))
    if failed:
        ids = [str(one.published.message.notification_id) for one in failed[:5]]
        command = stack.command("failures", "", ["--each", "--id", *ids])
        output.next_step("See why", command)


def _stage(one: Followed) -> str:
    return "waiting" if one.status == Status.WAITING else "under way"


def _as_json(one: Followed) -> dict[str, object]:
    return {
        "id": one.published.message.notification_id,
        "bot": one.published.message.bot,
        "status": one.status,
        "reason": one.reason,
        "ended": one.ended,
    }
