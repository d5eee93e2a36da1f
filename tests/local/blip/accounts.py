"""Which WhatsApp identity a phone number has."""

from functools import lru_cache

import phonenumbers

from tests.local.blip.lime import WHATSAPP_DOMAIN

# Older Brazilian accounts outside these area codes keep an identity without the ninth digit.
_NINTH_DIGIT_AREAS = frozenset({*map(str, range(11, 20)), "21", "22", "24", "27", "28"})


@lru_cache(maxsize=200_000)
def problem_with(phone: str) -> str | None:
    """What reason 61 says about a number with '+' that is none."""
    try:
        number = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException as error:
        return str(error)
    if phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) != phone:
        return "The string supplied did not seem to be a phone number."
    match phonenumbers.is_possible_number_with_reason(number):
        case phonenumbers.ValidationResult.IS_POSSIBLE:
            return None
        case phonenumbers.ValidationResult.TOO_LONG:
            return "The string supplied is too long to be a phone number."
        case phonenumbers.ValidationResult.TOO_SHORT:
            return "The string supplied is too short to be a phone number."
        case _:
            return "The string supplied did not seem to be a phone number."


def identity_of(phone: str) -> str:
    """The identity, which for Brazil is not always made of the number's own digits."""
    digits = phone.removeprefix("+")
    if digits.startswith("55"):
        area, subscriber = digits[2:4], digits[4:]
        if area in _NINTH_DIGIT_AREAS:
            if len(subscriber) == 8 and subscriber[0] in "6789":
                digits = f"55{area}9{subscriber}"
        elif len(subscriber) == 9 and subscriber[0] == "9":
            digits = f"55{area}{subscriber[1:]}"
    return f"{digits}@{WHATSAPP_DOMAIN}"
