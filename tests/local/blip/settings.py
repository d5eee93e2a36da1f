"""What can be set: bots, behaviour and receipts. Python and HTTP use the same names."""

import base64
from random import Random
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Model(BaseModel):
    """A misspelt member is an error, not a setting that does nothing."""

    model_config = ConfigDict(extra="forbid")


class Traffic(Model):
    """What others send with a bot's key, such as people who chat: it only uses up the plan.

    The bursts begin when the bot is put, a seed is set or the simulator is cleared.

    Attributes:
        messages_per_second: the rate within a burst.
        spacing: `poisson` draws the times between messages; `even` makes them all the same.
        on_seconds: how long a burst is.
        on_share: the share of the time that is in bursts; 1 is always on.
    """

    messages_per_second: float = Field(gt=0)
    spacing: Literal["poisson", "even"] = "poisson"
    on_seconds: float = Field(default=60, gt=0)
    on_share: float = Field(default=1, gt=0, le=1)


class Marketing(Model):
    """Makes a bot's messages of MARKETING templates fail.

    Attributes:
        code: what the receipts say.
        first: how many fail for each recipient, before the others arrive; None: all of them.
    """

    code: int = 131049
    first: int | None = Field(default=None, ge=1)


class Bot(Model):
    """One bot with its key and its plan (BLiP's paid one by default; None is no limit)."""

    name: str = "simulated"
    key: str = ""
    messages_per_second: float | None = 50
    commands_per_second: float | None = 200
    notifications_per_second: float | None = 100
    whatsapp: bool = True
    webhook: bool = True
    traffic: Traffic | None = None
    marketing: Marketing | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        secret = self.key.removeprefix("Key ")
        if not secret:
            secret = base64.b64encode(f"{self.name}:secret".encode()).decode()
        name, colon, _ = base64.b64decode(secret, validate=True).decode().partition(":")
        if not (name and colon):
            raise ValueError("a key is base64 of identifier:secret")
        if self.key and "name" not in self.model_fields_set:
            self.name = name
        self.key = f"Key {secret}"
        return self

    @property
    def identity(self) -> str:
        return f"{self.name}@msging.net"

    def limit(self, kind: str) -> float | None:
        limits: dict[str, float | None] = {
            "messages": self.messages_per_second,
            "commands": self.commands_per_second,
            "notifications": self.notifications_per_second,
        }
        return limits[kind]


class Delays(Model):
    """Seconds from accepting a message to each event; None: that event never happens."""

    accepted: float | None = 0.0
    dispatched: float | None = 0.02
    received: float | None = 0.05
    consumed: float | None = 0.1
    failed: float = 0.05


class Receipts(Model):
    """How receipts are posted. Without a URL there is only the history.

    Attributes:
        headers: sent with each one, e.g. X-Receipts-Secret, and Host where a local AWS wants it.
        late_seconds: how much later than the event the receipt is posted.
        duplicates: how many times more each receipt is posted.
        out_of_order: a message's receipts are posted in random order.
        prefix: put before the id, as routers do (`fwd:`).
        instance: `to` carries an instance.
        retries: how often a receipt that did not get a 2xx is posted again.
        at_once: how many are under way at a time.
    """

    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    delays: Delays = Field(default_factory=Delays)
    late_seconds: float = 0
    duplicates: int = 0
    out_of_order: bool = False
    prefix: str = ""
    instance: bool = False
    retries: int = 3
    retry_seconds: float = 0.5
    timeout_seconds: float = 10
    at_once: int = Field(default=20, gt=0)


class Delay(Model):
    """A delay that varies evenly between mean - spread and mean + spread, but is never negative."""

    mean_seconds: float = 0
    spread_seconds: float = 0

    def draw(self, random: Random) -> float:
        """Return the next delay in seconds."""
        return max(0.0, self.mean_seconds + random.uniform(-1, 1) * self.spread_seconds)


class Distance(Model):
    """How far away the simulator is.

    Attributes:
        set_up: from the system accepting a connection until it stands: see distance.FarServer.
        there: each request's way to BLiP. It is counted against the plan at the end of that.
        back: each answer's way to the client.
    """

    set_up: Delay = Field(default_factory=Delay)
    there: Delay = Field(default_factory=Delay)
    back: Delay = Field(default_factory=Delay)


class Templates(Model):
    """How templates are listed, and when one pauses by itself.

    Attributes:
        envelope: what the resource is: an object with `data`, a collection with `items`, or the
            bare `list`.
        without_enriched: the failure with which a BLiP without the enriched list answers; None:
            it has one.
        skip: `$skip` is honoured; if not, every page is the first one.
        name_filter: what `templateName` chooses: the templates of `exact` that name, those whose
            name `contains` it, or all of them, because it is `ignored`.
        lag_seconds: how long a change takes to appear in the lists. Messages follow it at once.
        otp_button: what a list calls the button that copies a one-time code: WhatsApp's own lists
            say URL, and the documents on creating one say OTP.
        pause_after_failures: so many failed messages of a bot pause an approved template for that
            bot. A change of the template makes the count start anew.
    """

    envelope: Literal["data", "items", "list"] = "data"
    without_enriched: Literal[62, 67] | None = None
    skip: bool = True
    name_filter: Literal["exact", "contains", "ignored"] = "exact"
    lag_seconds: float = 0
    otp_button: Literal["URL", "OTP"] = "URL"
    pause_after_failures: int | None = Field(default=None, ge=1)


class Settings(Model):
    """How the simulator behaves.

    Attributes:
        seed: setting it makes what is drawn at random start anew, the same for the same seed; None
            is another each time. Distance, rules, jitter, receipts and each bot's traffic draw
            apart. Requests side by side draw in the order in which they come.
        latency_seconds: every answer of the three paths takes this long after it was counted
            against the plan, plus up to latency_jitter_seconds.
        distance: what requests, answers and new connections take on their way.
        throttle: the bots' plans are enforced.
        penalty_prolonged: what is refused during a penalty starts it anew.
        retry_after: a 429 says Retry-After.
        deduplicate: a message id seen before is answered 202 and ignored.
        strict_identities: a message to an identity that no look-up of that bot gave out fails.
        reason_codes: what a receipt says about WhatsApp's errors: `meta`, the code itself, or
            `gateway`, 81 with the code in the description.
        history_lag_seconds: how long an event takes to appear in the history.
        history_seconds: how long it stays there.
        unknown_history: the answer for an id without events: `empty` collection or `failure` 67.
        templates: how templates are listed, and when one pauses by itself.
    """

    seed: int | None = None
    latency_seconds: float = 0
    latency_jitter_seconds: float = 0
    distance: Distance = Field(default_factory=Distance)
    throttle: bool = True
    penalty_seconds: float = 120
    penalty_prolonged: bool = False
    retry_after: bool = False
    deduplicate: bool = False
    strict_identities: bool = True
    reason_codes: Literal["meta", "gateway"] = "meta"
    history_lag_seconds: float = 0
    history_seconds: float = 3 * 24 * 3600
    unknown_history: Literal["empty", "failure"] = "empty"
    receipts: Receipts = Field(default_factory=Receipts)
    templates: Templates = Field(default_factory=Templates)

    def changed(self, changes: dict[str, Any]) -> "Settings":
        """The same settings with some changed; nested objects are merged."""
        return Settings.model_validate(_merged(self.model_dump(), changes))


def _merged(old: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in changes.items():
        before = old.get(name)
        mergeable = isinstance(before, dict) and isinstance(value, dict) and name != "headers"
        merged[name] = _merged(before, value) if mergeable and before is not None else value
    return merged
