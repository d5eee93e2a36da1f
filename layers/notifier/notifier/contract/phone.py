"""A recipient's phone number in E.164: normalise it on the way in, mask it on the way out."""

import re

import phonenumbers
from phonenumbers import NumberParseException, PhoneNumberFormat, ValidationResult

# People write these between the digits, or paste them from documents: spaces (ordinary and
# non-breaking), hyphens and dashes of all lengths, parentheses. Anything else is a typing error.
_SEPARATORS = dict.fromkeys(
    map(ord, " \u00a0\u2007\u202f-\u2010\u2011\u2012\u2013\u2014\u2015\u2212()")
)

# What WhatsApp calls a person without a number: the id that it gives one for each business, and
# BLiP's identity, which may hold it.
_USER_ID = re.compile(
    r"[A-Z]{2}\.[0-9A-Za-z.]{4,}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(@.*)?"
)
_IS_USER_ID = (
    "is a business-scoped user id (BSUID), WhatsApp's name for a person without a number: requests "
    "go to a phone number, with + and the country code"
)
_IS_IDENTITY = (
    "is a WhatsApp identity: requests go to a phone number, with + and the country code, whose "
    "identity BLiP is asked for"
)

_TOO_SHORT = "is too short for a number of its country"
_TOO_LONG = "is too long for a number of its country"
_UNKNOWN_COUNTRY = "starts with a country code that does not exist"
_IMPOSSIBLE = {
    ValidationResult.INVALID_COUNTRY_CODE: _UNKNOWN_COUNTRY,
    ValidationResult.TOO_SHORT: _TOO_SHORT,
    ValidationResult.TOO_LONG: _TOO_LONG,
    ValidationResult.IS_POSSIBLE_LOCAL_ONLY: "lacks its area code",
    ValidationResult.INVALID_LENGTH: "has a length that no number of its country has",
}
_UNREADABLE = {
    NumberParseException.INVALID_COUNTRY_CODE: _UNKNOWN_COUNTRY,
    NumberParseException.TOO_LONG: _TOO_LONG,
}


def normalise(text: str) -> str:
    """Return the number in E.164, as in `+5531999998888`.

    The `+` is required: without it BLiP answers "success" to any number. A number is only refused
    when its length or country code make it impossible; whether it exists is for BLiP to say.

    Raises:
        ValueError: what is wrong and what would be right, without the number.
    """
    if _USER_ID.fullmatch(text.strip()):
        raise ValueError(_IS_USER_ID)
    if "@" in text:
        raise ValueError(_IS_IDENTITY)
    compact = text.translate(_SEPARATORS)
    if not compact.startswith("+"):
        raise ValueError("must start with + and the country code")
    digits = compact[1:]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(
            "must hold only digits after the +; spaces, dashes, parentheses may part them"
        )
    try:
        number = phonenumbers.parse(compact)
    except NumberParseException as error:
        raise ValueError(_UNREADABLE.get(error.error_type, _TOO_SHORT)) from None
    result = phonenumbers.is_possible_number_with_reason(number)
    if result != ValidationResult.IS_POSSIBLE:
        raise ValueError(_IMPOSSIBLE[result])
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    # One 0 after the country code, as in +55 (0)31, is dropped; what still changes when it is read
    # again would be another recipient each time.
    if e164 != compact and phonenumbers.parse(e164) != number:
        raise ValueError("has a 0 too many after the country code")
    return e164


def mask(e164: str) -> str:
    """Return what may be logged of a number: its last four digits, as in `…8888`."""
    return "…" + "".join(filter(str.isdigit, e164))[-4:]
