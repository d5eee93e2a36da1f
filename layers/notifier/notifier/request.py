"""The contract: what a producer may put on the requests queue, and what it means.

`parse` takes a message body to a `Parsed` request or raises `Unusable`, and nothing else, whatever
the body is. Its sentences go to dead letters and logs: they name fields and rules, never values.
"""

import base64
import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID, uuid5

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from notifier import phone
from notifier.bots import NAME_PATTERN as BOT_PATTERN
from notifier.failures import FieldError, Reason, Rejected

MAX_REQUEST_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024
MAX_WRAPPERS = 3
MAX_FIELD_ERRORS = 20
MAX_SUMMARISED_ERRORS = 3

ID_PATTERN = r"^[A-Za-z0-9._:~-]{1,128}$"
TEMPLATE_NAME_PATTERN = r"^[a-z0-9_]{1,512}$"
CORRELATION_PATTERN = r"^[!-~]{1,128}$"

# Never changed: the keys of the ledger and the message ids that BLiP knows hang on it.
_LEDGER_NAMESPACE = UUID("a95e10f3-1655-4f62-80bf-53417ca820db")


class Unusable(Rejected):
    """A body that is no valid request; the reason is `malformed` or `invalid`.

    Attributes:
        notification_id: the request's id, where it is readable and valid by its own rule.
        bot: the request's bot, likewise.
        template: the template's name, likewise.
        correlation_id: likewise.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        fields: tuple[FieldError, ...] = (),
        request: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reason, detail, fields=fields)
        self.notification_id = self.bot = self.template = self.correlation_id = None
        if request is not None:
            bot, template = request.get("bot"), request.get("template")
            name = template.get("name") if isinstance(template, dict) else None
            self.notification_id = _matching(ID_PATTERN, request.get("id"))
            self.bot = _matching(BOT_PATTERN, "default" if bot is None else bot)
            self.template = _matching(TEMPLATE_NAME_PATTERN, name)
            self.correlation_id = _matching(CORRELATION_PATTERN, request.get("correlation_id"))


def _matching(pattern: str, value: object) -> str | None:
    # fullmatch: in Python's dialect, unlike JSON Schema's, `$` also matches before a last newline.
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else None


# --- The model ------------------------------------------------------------------------------------
#
# pydantic checks types and shapes; the sentence beside each rule is what the producer reads when it
# is broken. The docstrings' `Attributes` become the descriptions in events/schema.


def _says(sentence: str) -> WrapValidator:
    """Answer whatever breaks the rule that it stands behind with one sentence."""

    def check(value: object, rule: ValidatorFunctionWrapHandler) -> object:
        try:
            return rule(value)
        except ValidationError:
            raise PydanticCustomError("rule", sentence) from None

    return WrapValidator(check)


def _broken(sentence: str) -> PydanticCustomError:
    return PydanticCustomError("rule", sentence)


_NEWLINE = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _one_line(text: str) -> str:
    """Hold a text to WhatsApp's rules for parameters: it refuses others after BLiP's 202."""
    if not text.strip():
        raise _broken("must not be empty")
    if _NEWLINE.search(text):
        raise _broken("must not hold a newline")
    if "\t" in text:
        raise _broken("must not hold a tab")
    if " " * 5 in text:
        raise _broken("must not hold more than four spaces in a row")
    return text


def _recipient(text: str) -> str:
    try:
        return phone.normalise(text)
    except ValueError as error:
        raise _broken(str(error)) from None


_UNREADABLE_HOST = "is not a link: its host or port cannot be read"
# Some releases of `urlsplit` ignore what stands beside the brackets of an IPv6 address.
_BRACKETS = re.compile(r"(.*@)?([^\[\]]*|\[[^\[\]]*\](:.*)?)")
_NO_MEDIA_HOSTS = ("youtube.com", "youtube-nocookie.com", "youtu.be")


def _reachable(link: str) -> str:
    if re.search(r"[\s\\\x00-\x1f\x7f]", link):
        raise _broken("must not hold spaces, backslashes or control characters: encode them")
    try:
        parts = urlsplit(link)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise _broken(_UNREADABLE_HOST) from None
    if not _BRACKETS.fullmatch(parts.netloc):
        raise _broken(_UNREADABLE_HOST)
    if parts.scheme not in {"http", "https"} or not host:
        raise _broken("must be an http or https link with a host")
    if any(f".{host}".endswith(f".{refused}") for refused in _NO_MEDIA_HOSTS):
        raise _broken("must not be a YouTube link: WhatsApp needs the file itself")
    return link


_SEPARATOR = r"[ \u00a0\u2007\u202f\u2010-\u2015\u2212()-]"

# Only days that their month can have; the 29th of February is left to `fromisoformat`.
_DATE = (
    r"(?!0000)[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))"
)
_HOURS_MINUTES = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_RFC_3339 = re.compile(
    rf"{_DATE}[Tt]{_HOURS_MINUTES}:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]{_HOURS_MINUTES})"
)


def _moment(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    try:
        if isinstance(value, str) and _RFC_3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise _broken("must be a time with its offset, as in 2031-11-22T18:00:00-03:00")


def _kind(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


# Errors carry the tag of the variant in their path; this mark tells it from the producer's names.
_TAG = "\0"


def _by_type(sentence: str) -> Discriminator:
    def tag(value: object) -> str | None:
        kind = _kind(value)
        return f"{_TAG}{kind}" if isinstance(kind, str) else None

    return Discriminator(tag, custom_error_type="rule", custom_error_message=sentence)


_ONE_LINE = AfterValidator(_one_line)

# The rules of `_one_line` and `_reachable` again, for producers who check against events/schema.
# What \s means differs between dialects of regular expressions, so its characters are listed.
_SPACES = r"\t-\r\x1c-\x20\x85\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ONE_LINE_SCHEMA: dict[str, Any] = {
    "minLength": 1,
    "pattern": (rf"^(?!.* {{5}})(?=.*[^{_SPACES}])[^\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+$"),
}
_AUTHORITY = r"^[Hh][Tt][Tt][Pp][Ss]?://([^/?#]*@)?"
_HOST = r"(\.*[^/?#@:\[\].][^/?#@:\[\]]*|\[[^/?#@\[\]]+\])"
_PORT = r":(0*([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_NO_MEDIA_HOST = "|".join(
    re.sub("[a-z]", lambda letter: f"[{letter[0].upper()}{letter[0]}]", host).replace(".", r"\.")
    for host in _NO_MEDIA_HOSTS
)
_LINK_SCHEMA: dict[str, Any] = {
    "pattern": rf"{_AUTHORITY}{_HOST}({_PORT})?([/?#]|$)",
    "not": {
        "anyOf": [
            {"pattern": rf"[{_SPACES}\\\x00-\x1f\x7f]"},
            {"pattern": rf"{_AUTHORITY}([^/?#@:]*\.)?({_NO_MEDIA_HOST})\.*([:/?#]|$)"},
        ]
    },
}

Text = Annotated[str, Field(json_schema_extra=_ONE_LINE_SCHEMA), _says("must be a text"), _ONE_LINE]
Index = Annotated[int, Field(ge=0, le=9), _says("must be a whole number from 0 to 9")]
Link = Annotated[
    str,
    Field(
        max_length=2000,
        pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://",
        json_schema_extra=_LINK_SCHEMA,
    ),
    _says("must be an http or https link of at most 2000 characters"),
    AfterValidator(_reachable),
]


class _Strict(BaseModel):
    """Frozen, nothing coerced, no unknown fields; an optional field may be null or left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: object) -> object:
        if isinstance(value, dict):
            return {
                name: entry
                for name, entry in value.items()
                if entry is not None or name not in cls.model_fields
            }
        return value


class HeaderText(_Strict):
    """The variable of a text header.

    Attributes:
        type: the kind of header.
        text: its value, at most 60 characters (Meta's limit for the whole header).
    """

    type: Literal["text"]
    text: Annotated[
        str,
        Field(max_length=60, json_schema_extra=_ONE_LINE_SCHEMA),
        _says("must be a text of at most 60 characters"),
        _ONE_LINE,
    ]


class HeaderImage(_Strict):
    """An image above the text: JPEG or PNG, at most 5 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent.
    """

    type: Literal["image"]
    link: Link


class HeaderVideo(_Strict):
    """A video above the text: MP4 or 3GP with H.264 and AAC, at most 16 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent; never YouTube.
    """

    type: Literal["video"]
    link: Link


class HeaderDocument(_Strict):
    """A document above the text: PDF, at most 100 MB.

    Attributes:
        type: the kind of header.
        link: where WhatsApp fetches it, without cookies or a user agent.
        filename: the name that the recipient sees.
    """

    type: Literal["document"]
    link: Link
    filename: Text


class HeaderLocation(_Strict):
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
        float, Field(ge=-90, le=90), _says("must be a number of degrees from -90 to 90")
    ]
    longitude: Annotated[
        float, Field(ge=-180, le=180), _says("must be a number of degrees from -180 to 180")
    ]
    name: Text
    address: Text


class Currency(_Strict):
    """An amount of money that WhatsApp writes in the recipient's way.

    Attributes:
        type: the kind of value.
        fallback_value: what is shown where that cannot be done.
        code: the currency in ISO 4217, as in `BRL`.
        amount_1000: the amount times 1000.
    """

    type: Literal["currency"]
    fallback_value: Text
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}$"), _says("must be an ISO 4217 code, as in BRL")]
    amount_1000: Annotated[int, _says("must be a whole number: the amount times 1000")]


class DateTime(_Strict):
    """A date and time, in words.

    Attributes:
        type: the kind of value.
        fallback_value: what is shown; WhatsApp knows no other form any more.
    """

    type: Literal["date_time"]
    fallback_value: Text


class QuickReply(_Strict):
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
        _says("must be a text of 1 to 256 characters"),
    ]
    index: Index | None = None


class UrlButton(_Strict):
    """A button that opens a link whose end is variable.

    Attributes:
        type: the kind of button.
        text: what is put at the end of the template's link, 1 to 2000 characters.
        index: its place in the template, 0 to 9, where that is not its place in this list.
    """

    type: Literal["url"]
    text: Annotated[
        str,
        Field(max_length=2000, json_schema_extra=_ONE_LINE_SCHEMA),
        _says("must be a text of 1 to 2000 characters"),
        _ONE_LINE,
    ]
    index: Index | None = None


class CopyCode(_Strict):
    """A button that copies a coupon.

    Attributes:
        type: the kind of button.
        coupon: the code, 1 to 15 characters.
        index: its place in the template, 0 to 9, where that is not its place in this list.
    """

    type: Literal["copy_code"]
    coupon: Annotated[
        str,
        Field(max_length=15, json_schema_extra=_ONE_LINE_SCHEMA),
        _says("must be a text of 1 to 15 characters"),
        _ONE_LINE,
    ]
    index: Index | None = None


Header = Annotated[
    Annotated[HeaderText, Tag(f"{_TAG}text")]
    | Annotated[HeaderImage, Tag(f"{_TAG}image")]
    | Annotated[HeaderVideo, Tag(f"{_TAG}video")]
    | Annotated[HeaderDocument, Tag(f"{_TAG}document")]
    | Annotated[HeaderLocation, Tag(f"{_TAG}location")],
    _by_type("must be an object with the type text, image, video, document or location"),
]
Button = Annotated[
    Annotated[QuickReply, Tag(f"{_TAG}quick_reply")]
    | Annotated[UrlButton, Tag(f"{_TAG}url")]
    | Annotated[CopyCode, Tag(f"{_TAG}copy_code")],
    _by_type("must be an object with the type quick_reply, url or copy_code"),
]


def _value_kind(value: object) -> str | None:
    kind = "str" if isinstance(value, str) else _kind(value)
    return f"{_TAG}{kind}" if isinstance(kind, str) else None


def _body_kind(value: object) -> str | None:
    match value:
        case list():
            return f"{_TAG}list"
        case dict():
            return f"{_TAG}named"
        case _:
            return None


BodyValue = Annotated[
    Annotated[Text, Tag(f"{_TAG}str")]
    | Annotated[Currency, Tag(f"{_TAG}currency")]
    | Annotated[DateTime, Tag(f"{_TAG}date_time")],
    Discriminator(
        _value_kind,
        custom_error_type="rule",
        custom_error_message="must be a text, or an object with the type currency or date_time",
    ),
]
ParameterName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]*$"),
    _says("its name must be lower-case letters, digits and _, a letter first"),
]
Body = Annotated[
    Annotated[list[BodyValue], Tag(f"{_TAG}list")]
    | Annotated[
        dict[ParameterName, BodyValue],
        Field(json_schema_extra={"additionalProperties": False}),
        Tag(f"{_TAG}named"),
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
            raise _broken(f"has two buttons at index {index}; without an index it is the position")
        taken.add(index)
    return buttons


def _typed(component: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(component.get("type"), str):
        raise _broken("must have a type, as in body or carousel")
    return component


_COMPONENT_SCHEMA: dict[str, Any] = {
    "properties": {"type": {"type": "string"}},
    "required": ["type"],
}


# The rule of `_components_stand_alone` in events/schema.
_STANDS_ALONE_SCHEMA: dict[str, Any] = {
    "if": {"properties": {"components": {"type": "array"}}, "required": ["components"]},
    "then": {
        "properties": {
            "header": {"type": "null"},
            "body": {"type": "null"},
            "buttons": {"maxItems": 0},
        }
    },
}


class Template(_Strict):
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
    """

    model_config = ConfigDict(json_schema_extra=_STANDS_ALONE_SCHEMA)

    name: Annotated[
        str,
        Field(pattern=TEMPLATE_NAME_PATTERN),
        _says("must be 1 to 512 of lower-case letters, digits and _"),
    ]
    language: Annotated[
        str,
        Field(pattern=r"^[a-z]{2,3}(_([A-Z]{2}|[0-9]{3}))?$"),
        _says("must be a language code with an underscore, as in pt_BR or en"),
    ]
    namespace: (
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9_-]{1,128}$"),
            _says("must be 1 to 128 of letters, digits, _ and -"),
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

    @model_validator(mode="after")
    def _components_stand_alone(self) -> Self:
        if self.components is not None and (
            self.header is not None or self.body is not None or self.buttons
        ):
            raise _broken("has components beside header, body or buttons: it is one or the others")
        return self


class NotificationRequest(_Strict):
    """One business message to one recipient.

    Attributes:
        id: chosen by the producer, 1 to 128 of `A-Z a-z 0-9 . _ : ~ -`. The same id of the same bot
            is the same notification for 45 days.
        to: the recipient's number in E.164, with `+`; spaces, dashes and parentheses are dropped.
        template: what is sent.
        bot: which bot sends it, by its name in the bots' configuration.
        valid_until: RFC 3339 with offset; it is never sent after that, also not after a redrive.
        if_unknown: what follows when nobody can tell whether it went out and BLiP's history does
            not know it: `resend` it (the recipient may, rarely, get it twice) or let it `fail`.
        metadata: comes back in status events and never goes to BLiP: at most 10 texts of at most
            256 characters, with names of at most 64.
        correlation_id: names the producer's own piece of work, 1 to 128 of the visible ASCII
            characters: comes back in logs and status events. No part of the content: the same
            request may come again with another one.
    """

    id: Annotated[
        str,
        Field(pattern=ID_PATTERN, examples=["order-981-shipped"]),
        _says("must be 1 to 128 of letters, digits and . _ : ~ -"),
    ]
    to: Annotated[
        str,
        Field(
            examples=["+5531999998888"],
            # Spaces, dashes and parentheses anywhere; a + before the first digit.
            json_schema_extra={
                "pattern": rf"^{_SEPARATOR}*\+({_SEPARATOR}*[0-9]){{4,17}}{_SEPARATOR}*$"
            },
        ),
        _says("must be a phone number as a text, with + and the country code"),
        AfterValidator(_recipient),
    ]
    template: Template
    bot: Annotated[
        str,
        Field(pattern=BOT_PATTERN),
        _says("must be 1 to 64 of letters, digits, _ and -"),
    ] = "default"
    valid_until: (
        Annotated[
            datetime,
            Field(json_schema_extra={"pattern": rf"^{_RFC_3339.pattern}$"}),
            BeforeValidator(_moment),
        ]
        | None
    ) = None
    if_unknown: Annotated[Literal["resend", "fail"], _says("must be resend or fail")] = "resend"
    metadata: Annotated[
        dict[
            Annotated[
                str,
                Field(min_length=1, max_length=64),
                _says("its name must be of 1 to 64 characters"),
            ],
            Annotated[
                str, Field(max_length=256), _says("must be a text of at most 256 characters")
            ],
        ],
        Field(max_length=10),
    ] = Field(default_factory=dict)
    correlation_id: (
        Annotated[
            str,
            Field(pattern=CORRELATION_PATTERN),
            _says("must be 1 to 128 visible ASCII characters without spaces"),
        ]
        | None
    ) = None


# --- Reading a body -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request that keeps to the contract.

    Attributes:
        request: what it asks for, with the recipient in E.164.
        content_hash: of the producer's own object without its wrappers and its correlation id, so
            that a later release of this contract does not change it; tells a repetition from
            another content under an id.
    """

    request: NotificationRequest
    content_hash: str


def parse(body: str) -> Parsed:
    """Read a message body: take off its wrappers, then hold it to the contract.

    Raises:
        Unusable: it is malformed (not UTF-8, not a JSON object, too large, a broken wrapper), or
            invalid, with every broken field.
    """
    content = _unwrapped(body)
    try:
        canonical = _canonical(content)
    except ValueError:
        raise _malformed("the request holds a number too large for JSON", content) from None
    if len(canonical) > MAX_REQUEST_BYTES:
        raise _malformed("the request is larger than 64 KiB", content)
    try:
        request = NotificationRequest.model_validate(content)
    except ValidationError as error:
        raise _invalid(error, content) from None
    if "correlation_id" in content:
        canonical = _canonical({k: v for k, v in content.items() if k != "correlation_id"})
    return Parsed(request, f"1:{hashlib.sha256(canonical).hexdigest()}")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def ledger_key(bot: str, notification_id: str) -> str:
    """Give the key of a notification in the ledger; a bot's name holds no `/`."""
    return str(uuid5(_LEDGER_NAMESPACE, f"{bot}/{notification_id}"))


def message_id(key: str, generation: int) -> str:
    """Give the id that BLiP gets: each generation has one of its own."""
    return key if generation == 1 else f"{key}:{generation}"


def _unwrapped(body: str) -> dict[str, Any]:
    try:
        encoded = body.encode()
    except UnicodeEncodeError:
        raise _malformed("the body is not UTF-8") from None
    if len(encoded) > MAX_BODY_BYTES:
        raise _malformed("the body is larger than 256 KiB")
    content = _json_object(encoded, "the body")
    for _ in range(MAX_WRAPPERS):
        inner = _taken_off(content)
        if inner is None:
            return content
        content = inner
    if _taken_off(content) is not None:
        raise _malformed("the body has more than three wrappers around the request")
    return content


def _taken_off(content: dict[str, Any]) -> dict[str, Any] | None:
    """Give what a wrapper holds, None for what is no wrapper."""
    match content:
        case {"Type": "Notification", "Message": str(message)}:
            return _json_object(message.encode(), "the Message of the SNS wrapper")
        case {"TopicArn": _} | {"Type": "Notification"}:
            raise _malformed("the SNS wrapper must have the Type Notification and a Message text")
        case {"detail-type": _, "detail": dict(detail)}:
            return detail
        case {"detail-type": _} | {"detail": _, "source": _}:
            raise _malformed("the EventBridge wrapper must have a detail-type and a detail object")
        case {"specversion": version}:
            if version != "1.0":
                raise _malformed("the CloudEvents wrapper must have the specversion 1.0")
            return _cloud_event_data(content)
        case _:
            return None


def _cloud_event_data(event: dict[str, Any]) -> dict[str, Any]:
    match event:
        case {"data": _, "data_base64": _}:
            raise _malformed("the CloudEvents wrapper has both data and data_base64")
        case {"data": dict(data)}:
            return data
        case {"data": str(text)}:
            return _json_object(text.encode(), "the data of the CloudEvents wrapper")
        case {"data_base64": str(encoded)}:
            what = "the data_base64 of the CloudEvents wrapper"
            try:
                return _json_object(base64.b64decode(encoded, validate=True), what)
            except ValueError:
                raise _malformed(f"{what} is not base64") from None
        case _:
            raise _malformed("the CloudEvents wrapper has no data object")


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    if text.startswith(b"\xef\xbb\xbf"):
        raise _malformed(f"{what} starts with a byte order mark: leave it out")
    try:
        content = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _malformed(f"{what} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise _malformed(f"{what} is not a JSON object")
    return content


# --- Saying what is wrong -------------------------------------------------------------------------


def _malformed(detail: str, request: dict[str, Any] | None = None) -> Unusable:
    return Unusable(Reason.MALFORMED, detail, request=request)


def _invalid(error: ValidationError, request: dict[str, Any]) -> Unusable:
    problems = error.errors(include_url=False, include_input=False)
    fields = tuple(map(_field_error, problems[:MAX_FIELD_ERRORS]))
    summary = "; ".join(
        f"{broken.field or 'the request'}: {broken.problem}"
        for broken in fields[:MAX_SUMMARISED_ERRORS]
    )
    if len(problems) > MAX_SUMMARISED_ERRORS:
        summary += f"; and {len(problems) - MAX_SUMMARISED_ERRORS} more"
    return Unusable(Reason.INVALID, summary, fields=fields, request=request)


# pydantic's own errors that reach a producer; all others come from `_says`.
_SENTENCES = {
    "missing": "is required",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entry",
    "string_type": "must be a text",
}


def _field_error(problem: ErrorDetails) -> FieldError:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return FieldError(_path(location), _unknown_field(location))
    sentence = _SENTENCES.get(problem["type"], problem["msg"]).format_map(problem.get("ctx", {}))
    return FieldError(_path(location), sentence)


def _unknown_field(location: tuple[int | str, ...]) -> str:
    owner = _MODELS[location[-2]] if len(location) > 1 else NotificationRequest
    close = difflib.get_close_matches(str(location[-1]), owner.model_fields, n=1)
    return f"unknown field; did you mean {close[0]}?" if close else "unknown field"


# What stands before an unknown field's name in an error's path: the model that does not know it.
_MODELS: dict[int | str, type[BaseModel]] = {
    "template": Template,
    f"{_TAG}text": HeaderText,
    f"{_TAG}image": HeaderImage,
    f"{_TAG}video": HeaderVideo,
    f"{_TAG}document": HeaderDocument,
    f"{_TAG}location": HeaderLocation,
    f"{_TAG}quick_reply": QuickReply,
    f"{_TAG}url": UrlButton,
    f"{_TAG}copy_code": CopyCode,
    f"{_TAG}currency": Currency,
    f"{_TAG}date_time": DateTime,
}


def _path(location: tuple[int | str, ...]) -> str:
    """Write an error's path as the producer would, without pydantic's own steps."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]" and not step.startswith(_TAG):
            path += f".{_printable(step)}"
    return path.removeprefix(".")


def _printable(name: str) -> str:
    """Keep whatever a producer put in a name's place, a phone number perhaps, out of the logs."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name)
    many_digits = re.search(r"([0-9][^0-9]*){5}", name)
    return name if plain and not many_digits else "?"
