"""What can go wrong with a notification, by what has to follow.

    Failure
    ├── Rejected        cannot succeed as it is: dead letter, at once
    ├── Transient       surely did not go out: wait, then try again
    ├── Throttled       over the plan: the bot waits for the cooldown, in every sandbox
    ├── Unknown         may have gone out: never send again before that is settled
    └── Misconfigured   the bot's key, URL or channel is wrong: requests wait, an alarm rings

The texts go to dead letters and logs: none of them ever holds a phone number, a parameter or a key.
"""

import traceback
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a request became a dead letter. `events/README.md` says what to do about each."""

    MALFORMED = "malformed"
    INVALID = "invalid"
    UNKNOWN_BOT = "unknown_bot"
    ID_CONFLICT = "id_conflict"
    EXPIRED = "expired"
    NOT_A_PHONE_NUMBER = "not_a_phone_number"
    NOT_ALLOWED = "not_allowed"
    TEMPLATE_MISMATCH = "template_mismatch"
    TEMPLATE_UNAVAILABLE = "template_unavailable"
    REJECTED = "rejected"
    UNDELIVERED = "undelivered"
    RECIPIENT_CAPPED = "recipient_capped"
    OPTED_OUT = "opted_out"
    OUTCOME_UNKNOWN = "outcome_unknown"
    RETRIES_EXHAUSTED = "retries_exhausted"
    WAITED_TOO_LONG = "waited_too_long"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One broken field of a request.

    Attributes:
        field: its path, as in `template.body[1]`; empty for the request as a whole.
        problem: what is wrong with it and what would be right, without its value.
    """

    field: str
    problem: str


class Failure(Exception):
    """A step of a notification that did not succeed.

    Attributes:
        detail: one sentence for a person.
        code: BLiP's reason code or the HTTP status, where there is one.
    """

    def __init__(self, detail: str, *, code: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


class Rejected(Failure):
    """The request cannot succeed as it is.

    Attributes:
        reason: why, in the dead letters' words.
        fields: every broken field, for a request that breaks the contract or its template.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        code: int | None = None,
        fields: tuple[FieldError, ...] = (),
    ) -> None:
        super().__init__(detail, code=code)
        self.reason = reason
        self.fields = fields


class Transient(Failure):
    """It surely did not go out, and a later attempt may succeed."""


class Throttled(Failure):
    """The bot is over its plan.

    Attributes:
        retry_after_seconds: the wait that BLiP asks for; None if it names none.
    """

    def __init__(
        self, detail: str, *, code: int | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


class Unknown(Failure):
    """It may have gone out; this side cannot know."""


class Misconfigured(Failure):
    """The bot's key, URL or channel is wrong. No fault of the request, which waits."""


def crash_facts(crash: BaseException) -> dict[str, object]:
    """Return what may be logged of an unexpected exception: what it is, and where.

    Its message stays out: botocore's repeat the values that they were given. Where AWS refused,
    the operation and the code say enough.
    """
    # botocore's network errors have a `response`, too: None.
    response = getattr(crash, "response", None) or {}
    facts = {
        "error": type(crash).__name__,
        "operation": getattr(crash, "operation_name", None),
        "code": response.get("Error", {}).get("Code"),
        "stack": traceback.format_tb(crash.__traceback__),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
