"""Rules of the contract's fields, each answered with one sentence that holds no value."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from notifier.contract import phone

# pydantic checks types and shapes; the sentence beside each rule is what the producer reads when it
# is broken. The docstrings' `Attributes` become the descriptions in events/schema.


class Strict(BaseModel):
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


def says(sentence: str) -> WrapValidator:
    """Answer whatever breaks the rule that it stands behind with one sentence."""

    def check(value: object, rule: ValidatorFunctionWrapHandler) -> object:
        try:
            return rule(value)
        except ValidationError:
            raise PydanticCustomError("rule", sentence) from None

    return WrapValidator(check)


def broken(sentence: str) -> PydanticCustomError:
    """Return the error of a broken rule, to be raised by its validator."""
    return PydanticCustomError("rule", sentence)


_NEWLINE = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _one_line(text: str) -> str:
    """Hold a text to WhatsApp's rules for parameters: it refuses others after BLiP's 202."""
    if not text.strip():
        raise broken("must not be empty")
    if _NEWLINE.search(text):
        raise broken("must not hold a newline")
    if "\t" in text:
        raise broken("must not hold a tab")
    if " " * 5 in text:
        raise broken("must not hold more than four spaces in a row")
    return text


def recipient(text: str) -> str:
    """Return a phone number in E.164."""
    try:
        return phone.normalise(text)
    except ValueError as error:
        raise broken(str(error)) from None


_UNREADABLE_HOST = "is not a link: its host or port cannot be read"


# Some releases of `urlsplit` ignore what stands beside the brackets of an IPv6 address.
_BRACKETS = re.compile(r"(.*@)?([^\[\]]*|\[[^\[\]]*\](:.*)?)")


_NO_MEDIA_HOSTS = ("youtube.com", "youtube-nocookie.com", "youtu.be")


def _reachable(link: str) -> str:
    if re.search(r"[\s\\\x00-\x1f\x7f]", link):
        raise broken("must not hold spaces, backslashes or control characters: encode them")
    try:
        parts = urlsplit(link)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise broken(_UNREADABLE_HOST) from None
    if not _BRACKETS.fullmatch(parts.netloc):
        raise broken(_UNREADABLE_HOST)
    if parts.scheme not in {"http", "https"} or not host:
        raise broken("must be an http or https link with a host")
    if any(f".{host}".endswith(f".{refused}") for refused in _NO_MEDIA_HOSTS):
        raise broken("must not be a YouTube link: WhatsApp needs the file itself")
    return link


SEPARATOR = r"[ \u00a0\u2007\u202f\u2010-\u2015\u2212()-]"


# Only days that their month can have; the 29th of February is left to `fromisoformat`.
_DATE = (
    r"(?!0000)[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))"
)


_HOURS_MINUTES = r"([01][0-9]|2[0-3]):[0-5][0-9]"


RFC_3339 = re.compile(
    rf"{_DATE}[Tt]{_HOURS_MINUTES}:[0-5][0-9](\.[0-9]+)?([Zz]|[+-]{_HOURS_MINUTES})"
)


def moment(value: object) -> datetime:
    """Return a time, given as RFC 3339 writes it, with an offset."""
    if isinstance(value, datetime):
        return value
    try:
        if isinstance(value, str) and RFC_3339.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise broken("must be a time with its offset, as in 2031-11-22T18:00:00-03:00")


def kind_of(value: object) -> object:
    """Return the member `type`, which names the variant."""
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


# An error's path holds the tag of the variant; this mark distinguishes it from producers' names.
TAG = "\0"


def by_type(sentence: str) -> Discriminator:
    """Choose a variant by its member `type`; answer any other value with the sentence."""

    def tag(value: object) -> str | None:
        kind = kind_of(value)
        return f"{TAG}{kind}" if isinstance(kind, str) else None

    return Discriminator(tag, custom_error_type="rule", custom_error_message=sentence)


ONE_LINE = AfterValidator(_one_line)


# The rules of `_one_line` and `_reachable` again, for producers who check against events/schema.
# What \s means differs between dialects of regular expressions, so its characters are listed.
SPACES = r"\t-\r\x1c-\x20\x85\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


ONE_LINE_SCHEMA: dict[str, Any] = {
    "minLength": 1,
    "pattern": (rf"^(?!.* {{5}})(?=.*[^{SPACES}])[^\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+$"),
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
            {"pattern": rf"[{SPACES}\\\x00-\x1f\x7f]"},
            {"pattern": rf"{_AUTHORITY}([^/?#@:]*\.)?({_NO_MEDIA_HOST})\.*([:/?#]|$)"},
        ]
    },
}


Text = Annotated[str, Field(json_schema_extra=ONE_LINE_SCHEMA), says("must be a text"), ONE_LINE]


Index = Annotated[int, Field(ge=0, le=9), says("must be a whole number from 0 to 9")]


Link = Annotated[
    str,
    Field(
        max_length=2000,
        pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://",
        json_schema_extra=_LINK_SCHEMA,
    ),
    says("must be an http or https link of at most 2000 characters"),
    AfterValidator(_reachable),
]
