"""The contract's part on a template: its header, body and buttons, and the values they take."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from notifier.contract.rules import (
    ONE_LINE,
    ONE_LINE_SCHEMA,
    TAG,
    Index,
    Link,
    Strict,
    Text,
    broken,
    by_type,
    kind_of,
    says,
)
from notifier.domain.notification import REMOVED

CODE_REMOVED = "was removed when the request was kept: publish a new request, with a new id"
TEMPLATE_NAME_PATTERN = r"^[a-z0-9_]{1,512}$"
LANGUAGE_PATTERN = r"^[a-z]{2,3}(_([A-Z]{2}|[0-9]{3}))?$"


class HeaderText(Strict):
    """The variable of a text header.

    Attributes:
        type: the kind of header.
        text: its value, at most 60 characters (Meta's limit for the whole header).
    """

    type: Literal["text"]
    text: Annotated[
        str,
        Field(max_length=60, json_schema_extra=ONE_LINE_SCHEMA),
        says("must be a text of at most 60 characters"),
        ONE_LINE,
    ]


class HeaderImage(Strict):
    """An image above the text: JPEG or PNG, at most 5 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent.
    """

    type: Literal["image"]
    link: Link


class HeaderVideo(Strict):
    """A video above the text: MP4 or 3GP with H.264 and AAC, at most 16 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent; never YouTube.
    """

    type: Literal["video"]
    link: Link


class HeaderDocument(Strict):
    """A document above the text: PDF, at most 100 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent.
        filename: the name that the recipient sees.
    """

    type: Literal["document"]
    link: Link
    filename: Text


class HeaderLocation(Strict):
    """A place on the map above the text.

    Attributes:
        type: the kind of header.
        latitude: degrees, south is negative.
        longitude: degrees, west is negative.
        name: what the place is called.
        address: where it is, in words.
    """

    type: Literal["location"]
    latitude: Annotated[
        float, Field(ge=-90, le=90), says("must be a number of degrees from -90 to 90")
    ]
    longitude: Annotated[
        float, Field(ge=-180, le=180), says("must be a number of degrees from -180 to 180")
    ]
    name: Text
    address: Text


class Currency(Strict):
    """An amount of money that WhatsApp writes in the recipient's way.

    Attributes:
        type: the kind of value.
        fallback_value: what is shown where that cannot be done.
        code: the currency in ISO 4217, as in `BRL`.
        amount_1000: the amount times 1000.
    """

    type: Literal["currency"]
    fallback_value: Text
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}$"), says("must be an ISO 4217 code, as in BRL")]
    amount_1000: Annotated[int, says("must be a whole number: the amount times 1000")]


class DateTime(Strict):
    """A date and time, in words.

    Attributes:
        type: the kind of value.
        fallback_value: what is shown; WhatsApp knows no other form any more.
    """

    type: Literal["date_time"]
    fallback_value: Text


class QuickReply(Strict):
    """A button that answers.

    Attributes:
        type: the kind of button.
        payload: what comes back when it is pressed, 1 to 256 characters.
        index: its place in the template, 0 to 9, where that is not its place in this list.
    """

    type: Literal["quick_reply"]
    payload: Annotated[
        str,
        Field(min_length=1, max_length=256),
        says("must be a text of 1 to 256 characters"),
    ]
    index: Index | None = None


class UrlButton(Strict):
    """A button that opens a link whose end is variable.

    Attributes:
        type: the kind of button.
        text: what is put at the end of the template's link, 1 to 2000 characters.
        index: its place in the template, 0 to 9, where that is not its place in this list.
    """

    type: Literal["url"]
    text: Annotated[
        str,
        Field(max_length=2000, json_schema_extra=ONE_LINE_SCHEMA),
        says("must be a text of 1 to 2000 characters"),
        ONE_LINE,
    ]
    index: Index | None = None


class CopyCode(Strict):
    """A button that copies a coupon.

    Attributes:
        type: the kind of button.
        coupon: the code, 1 to 15 characters.
        index: its place in the template, 0 to 9, where that is not its place in this list.
    """

    type: Literal["copy_code"]
    coupon: Annotated[
        str,
        Field(max_length=15, json_schema_extra=ONE_LINE_SCHEMA),
        says("must be a text of 1 to 15 characters"),
        ONE_LINE,
    ]
    index: Index | None = None


Header = Annotated[
    Annotated[HeaderText, Tag(f"{TAG}text")]
    | Annotated[HeaderImage, Tag(f"{TAG}image")]
    | Annotated[HeaderVideo, Tag(f"{TAG}video")]
    | Annotated[HeaderDocument, Tag(f"{TAG}document")]
    | Annotated[HeaderLocation, Tag(f"{TAG}location")],
    by_type("must be an object with the type text, image, video, document or location"),
]


Button = Annotated[
    Annotated[QuickReply, Tag(f"{TAG}quick_reply")]
    | Annotated[UrlButton, Tag(f"{TAG}url")]
    | Annotated[CopyCode, Tag(f"{TAG}copy_code")],
    by_type("must be an object with the type quick_reply, url or copy_code"),
]


def _value_kind(value: object) -> str | None:
    kind = "str" if isinstance(value, str) else kind_of(value)
    return f"{TAG}{kind}" if isinstance(kind, str) else None


def _body_kind(value: object) -> str | None:
    match value:
        case list():
            return f"{TAG}list"
        case dict():
            return f"{TAG}named"
        case _:
            return None


BodyValue = Annotated[
    Annotated[Text, Tag(f"{TAG}str")]
    | Annotated[Currency, Tag(f"{TAG}currency")]
    | Annotated[DateTime, Tag(f"{TAG}date_time")],
    Discriminator(
        _value_kind,
        custom_error_type="rule",
        custom_error_message="must be a text, or an object with the type currency or date_time",
    ),
]


ParameterName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]*$"),
    says("its name must be lower-case letters, digits and _, a letter first"),
]


Body = Annotated[
    Annotated[list[BodyValue], Tag(f"{TAG}list")]
    | Annotated[
        dict[ParameterName, BodyValue],
        Field(json_schema_extra={"additionalProperties": False}),
        Tag(f"{TAG}named"),
    ],
    Discriminator(
        _body_kind,
        custom_error_type="rule",
        custom_error_message="must be a list of values, or an object of named values",
    ),
]


def _apart(buttons: list[Button]) -> list[Button]:
    taken: set[int] = set()
    for position, button in enumerate(buttons):
        index = position if button.index is None else button.index
        if index in taken:
            raise broken(f"has two buttons at index {index}; without an index it is the position")
        taken.add(index)
    return buttons


def _typed(component: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(component.get("type"), str):
        raise broken("must have a type, as in body or carousel")
    return component


_COMPONENT_SCHEMA: dict[str, Any] = {
    "properties": {"type": {"type": "string"}},
    "required": ["type"],
}


def _not_removed(code: str) -> str:
    if code == REMOVED:
        raise broken(CODE_REMOVED)
    return code


_NO_PARTS: dict[str, Any] = {
    "header": {"type": "null"},
    "body": {"type": "null"},
    "buttons": {"maxItems": 0},
}
# The rule of `_filled_in_one_way` in events/schema.
_ONE_WAY_SCHEMA: dict[str, Any] = {
    "allOf": [
        {
            "if": {"properties": {"components": {"type": "array"}}, "required": ["components"]},
            "then": {"properties": _NO_PARTS},
        },
        {
            "if": {"properties": {"otp": {"type": "string"}}, "required": ["otp"]},
            "then": {"properties": {**_NO_PARTS, "components": {"type": "null"}}},
        },
    ]
}


class Template(Strict):
    """An approved WhatsApp message template and the parameters of this send.

    Attributes:
        name: its name at WhatsApp, `[a-z0-9_]`, at most 512 characters.
        language: the code of its translation, as in `pt_BR` or `en`. One that was not approved
            fails after the send; there is no falling back to another.
        namespace: the WhatsApp namespace it lives in; the bot's where left out.
        header: what fills its header.
        body: the values of its variables: a list by position, or an object by name.
        buttons: what its variable buttons need, in the template's order, at most 10.
        components: WhatsApp's own list, sent as it is, instead of header, body and buttons: for
            what this contract has no field for (carousel, flow, limited-time offer).
        otp: a one-time code of 4 to 15 letters and digits, for an authentication template, whose
            text and button both take it; instead of header, body, buttons and components. It is
            kept nowhere, and no part of the content: another code needs another id.
    """

    model_config = ConfigDict(json_schema_extra=_ONE_WAY_SCHEMA)

    name: Annotated[
        str,
        Field(pattern=TEMPLATE_NAME_PATTERN),
        says("must be 1 to 512 of lower-case letters, digits and _"),
    ]
    language: Annotated[
        str,
        Field(pattern=LANGUAGE_PATTERN),
        says("must be a language code with an underscore, as in pt_BR or en"),
    ]
    namespace: (
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9_-]{1,128}$"),
            says("must be 1 to 128 of letters, digits, _ and -"),
        ]
        | None
    ) = None
    header: Header | None = None
    body: Body | None = None
    buttons: Annotated[list[Button], Field(max_length=10), AfterValidator(_apart)] = Field(
        default_factory=list
    )
    components: (
        Annotated[
            list[
                Annotated[
                    dict[str, Any],
                    Field(json_schema_extra=_COMPONENT_SCHEMA),
                    AfterValidator(_typed),
                ]
            ],
            Field(min_length=1),
        ]
        | None
    ) = None

    otp: (
        Annotated[
            str,
            Field(pattern=r"^[0-9A-Za-z]{4,15}$"),
            says("must be 4 to 15 letters and digits"),
            BeforeValidator(_not_removed),
        ]
        | None
    ) = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _filled_in_one_way(self) -> Self:
        has_parts = self.header is not None or self.body is not None or bool(self.buttons)
        if self.otp is not None and (has_parts or self.components is not None):
            raise broken(
                "has otp beside header, body, buttons or components: it is one or the others"
            )
        if self.components is not None and has_parts:
            raise broken("has components beside header, body or buttons: it is one or the others")
        return self
