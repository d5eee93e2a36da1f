"""What is known of a recipient."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """What BLiP says of a recipient: how WhatsApp calls it, or that it is no phone number.

    Attributes:
        address: the identity, opaque; None where BLiP refused the number.
        code: BLiP's reason code for the refusal.
        forgotten_at: when the recipient was forgotten; nothing else is known then.
    """

    address: str | None
    code: int | None = None
    forgotten_at: float | None = None


@dataclass(frozen=True, slots=True)
class LookUpLease:
    """The exclusive right to look a recipient up, until it ends."""

    recipient: tuple[str, str]
    token: str
