"""WhatsApp message templates as BLiP lists them: what a send of one has to bring.

A template is what BLiP calls by one name; it has a translation for each language.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TemplateStatus(StrEnum):
    """What WhatsApp says of a translation. `OTHER` is whatever is not known here."""

    APPROVED = "APPROVED"
    PENDING = "PENDING"
    REJECTED = "REJECTED"
    PAUSED = "PAUSED"
    DISABLED = "DISABLED"
    OTHER = "OTHER"


class Category(StrEnum):
    """How WhatsApp prices and limits a template."""

    MARKETING = "MARKETING"
    UTILITY = "UTILITY"
    AUTHENTICATION = "AUTHENTICATION"


class HeaderKind(StrEnum):
    """What fills a header that needs a value."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"
    DOCUMENT = "document"
    LOCATION = "location"


class ButtonKind(StrEnum):
    """What a button of a template takes."""

    QUICK_REPLY = "quick_reply"  # a payload, or none
    URL = "url"  # the end of its link
    COPY_CODE = "copy_code"  # a coupon
    OTP = "otp"  # a one-time code
    STATIC = "static"  # nothing
    OTHER = "other"  # what is not known here: nothing is checked


type TemplateState = tuple[TemplateStatus, Category | None]
# The variables of a text: how many by position, or their names.
type Variables = int | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a translation, or a card of its carousel, takes.

    Attributes:
        header: the value that its header needs; None if it needs none.
        header_length: the characters of a text header that are fixed.
        body: the variables of its body.
        body_length: the characters of its body that are fixed.
        buttons: its buttons, by their index.
    """

    header: HeaderKind | None = None
    header_length: int = 0
    body: Variables = 0
    body_length: int = 0
    buttons: tuple[ButtonKind, ...] = ()


@dataclass(frozen=True, slots=True)
class Translation:
    """A template in one language.

    Attributes:
        category: None if BLiP names none, or one that is not known here.
        previous_category: the one before WhatsApp changed it, as BLiP says.
        shape: what a send has to bring.
        cards: those of its carousel.
        ttl_seconds: for how long WhatsApp tries to deliver it; None if BLiP does not say.
        is_understood: False if it has a part that is not known here; then nothing is refused
            because of its shape.
    """

    status: TemplateStatus
    category: Category | None = None
    previous_category: Category | None = None
    shape: Shape = field(default_factory=Shape)
    cards: tuple[Shape, ...] = ()
    ttl_seconds: int | None = None
    is_understood: bool = True


@dataclass(frozen=True, slots=True)
class RegisteredTemplate:
    """A template of a bot, as BLiP described it.

    Attributes:
        asked_at: when BLiP was asked, in epoch seconds; its answer came later.
        translations: by language, as in `pt_BR`.
        is_whole: BLiP was asked for this one alone. A list that changes between two pages may lack
            a translation.
        published: by language, the status and category that the last event of it named, or that the
            first sync found.
    """

    name: str
    asked_at: float
    translations: Mapping[str, Translation]
    is_whole: bool = False
    published: "Mapping[str, TemplateState]" = field(default_factory=dict)

    @property
    def states(self) -> "Mapping[str, TemplateState]":
        """By language, the status and category that it has now."""
        return {
            language: (translation.status, translation.category)
            for language, translation in self.translations.items()
        }


@dataclass(frozen=True, slots=True)
class Question:
    """The right to ask BLiP for one template, or what stands in its way.

    Attributes:
        granted: BLiP may be asked.
        stored: what the registry has of the template now.
        again_at: when it may be asked next, in epoch seconds.
    """

    granted: bool
    stored: RegisteredTemplate
    again_at: float


@dataclass(frozen=True, slots=True)
class TemplateChange:
    """A change of a translation, as upstream systems hear of it.

    Attributes:
        previous_status: what its event before named; None if it is new.
        previous_category: what its event before named; None if that named none.
        stored_at: when BLiP had been asked for what the registry had; with the rest it names the
            change.
        time: when BLiP was asked, in epoch seconds.
    """

    bot: str
    name: str
    language: str
    status: TemplateStatus
    previous_status: TemplateStatus | None
    category: Category | None
    previous_category: Category | None
    stored_at: float
    time: float

    @property
    def is_of_category(self) -> bool:
        """Whether WhatsApp has moved it to another category: another price, other limits."""
        known = self.category is not None and self.previous_category is not None
        return known and self.category is not self.previous_category
