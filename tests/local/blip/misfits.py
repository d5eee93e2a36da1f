"""What WhatsApp says about a message that does not fit its template.

BLiP passes the content on unread: all of this comes out as failed receipts, never as HTTP errors.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.local.blip.lime import Json
from tests.local.blip.templates import Button, Header, Shape, Template

DESCRIPTIONS = {
    100: "Invalid parameter",
    368: "Temporarily blocked for policies violations",
    130429: "Rate limit hit",
    130472: "User's number is part of an experiment",
    131000: "Something went wrong",
    131005: "Access denied",
    131008: "Required parameter is missing",
    131009: "Parameter value is not valid",
    131016: "Service unavailable",
    131021: "Recipient cannot be sender",
    131026: "Message undeliverable",
    131031: "Account has been locked",
    131042: "Business eligibility payment issue",
    131047: "Re-engagement message",
    131048: "Spam rate limit hit",
    131049: "This message was not delivered to maintain healthy ecosystem engagement",
    131050: "User has stopped marketing messages",
    131051: "Unsupported message type",
    131052: "Media download error",
    131053: "Media upload error",
    131056: "Pair rate limit hit",
    131057: "Account in maintenance mode",
    131063: "Marketing templates are not enabled for the Cloud API",
    131064: "Messaging limit reached because of template classification violations",
    132000: "Template param count mismatch",
    132001: "Template does not exist",
    132005: "Template hydrated text too long",
    132007: "Template format character policy violated",
    132012: "Template parameter format mismatch",
    132015: "Template is paused",
    132016: "Template is disabled",
}


class MisfitError(Exception):
    """The content does not fit the template; `code` is WhatsApp's."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.description = f"(#{code}) {DESCRIPTIONS[code]}: {detail}"


def check(content: Json, find: Callable[[str, str], Template | None]) -> Template:
    """Return the template that a message's content names and fits.

    Args:
        content: of the envelope.
        find: returns the bot's template of a name and language.

    Raises:
        MisfitError: WhatsApp would refuse the content.
    """
    _members(content, {"type", "template"}, {"templateContent"}, "content")
    if content["type"] != "template":
        raise MisfitError(131051, "only templates are delivered outside the 24 hours")
    sent = _object(content["template"], "template")
    _members(sent, {"name", "language"}, {"namespace", "components"}, "template")
    language = _object(sent["language"], "language")
    _members(language, {"code", "policy"}, set(), "language")
    if language["policy"] != "deterministic":
        raise MisfitError(131009, "the policy is not deterministic")
    template = _approved(sent["name"], language["code"], find)
    namespace = sent.get("namespace")
    if "namespace" in sent and not (isinstance(namespace, str) and namespace):
        raise MisfitError(131009, "the namespace is not a string")
    if template.namespace is not None and namespace not in (None, template.namespace):
        raise MisfitError(132001, "the namespace is another one")
    _check_components(sent.get("components", []), template, template)
    return template


def _approved(
    name: object, language: object, find: Callable[[str, str], Template | None]
) -> Template:
    if not (isinstance(name, str) and isinstance(language, str)):
        raise MisfitError(131009, "name and language code are strings")
    match find(name, language):
        case Template(status="PAUSED"):
            raise MisfitError(132015, f"{name} ({language})")
        case Template(status="DISABLED"):
            raise MisfitError(132016, f"{name} ({language})")
        case Template(status="APPROVED") as template:
            return template
        case _:
            raise MisfitError(132001, f"template name ({name}) does not exist in {language}")


def _object(value: object, what: str) -> Json:
    if not isinstance(value, dict):
        raise MisfitError(131009, f"{what} is not an object")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise MisfitError(131009, f"{what} is not a list")
    return value


def _members(sent: Json, needed: set[str], allowed: set[str], what: str) -> None:
    """Keys are case-sensitive: `Type` is a foreign one."""
    if foreign := sent.keys() - needed - allowed:
        raise MisfitError(132012, f"{what} has no member {', '.join(sorted(foreign))}")
    if missing := needed - sent.keys():
        raise MisfitError(131008, f"{what} needs {', '.join(sorted(missing))}")


def _check_components(components: object, shape: Shape, template: Template | None) -> None:
    """Check a template's components; `template` is None for those of a card."""
    cards = template.cards if template else []
    further = {str(one.get("type")).lower() for one in template.further} if template else set()
    header = body = carousel = None
    buttons: dict[int, Json] = {}
    for entry in _list(components, "components"):
        component = _object(entry, "component")
        match component.get("type"):
            case "header" if header is None:
                header = component
            case "body" if body is None:
                body = component
            case "carousel" if carousel is None and cards:
                carousel = component
            case "button":
                index = _index(component)
                if index in buttons:
                    raise MisfitError(132012, f"button {index} comes twice")
                buttons[index] = component
            case str(kind) if kind in further:
                further.remove(kind)
            case kind:
                raise MisfitError(132012, f"component {kind!r} is unknown here, or comes twice")
    _check_header(header, shape.header)
    _check_body(body, shape.body)
    _check_buttons(buttons, shape.buttons)
    if "OTP" in shape.buttons:
        _check_code(body, buttons[shape.buttons.index("OTP")])
    if cards:
        _check_cards(carousel, cards)


def _parameters(component: Json) -> list[Json]:
    _members(component, {"type", "parameters"}, set(), component["type"])
    return [_object(p, "parameter") for p in _list(component["parameters"], "parameters")]


def _check_header(component: Json | None, expected: Header | None) -> None:
    parameters = _parameters(component) if component else []
    if expected is None:
        if parameters:
            raise MisfitError(132000, "the template's header has no parameter")
        return
    if len(parameters) != 1:
        wrong = 132000 if expected == "TEXT" else 132012
        raise MisfitError(wrong, f"the header needs one parameter of format {expected}")
    (parameter,) = parameters
    kind = expected.lower()
    if parameter.get("type") != kind:
        raise MisfitError(
            132012, f"header: expected {expected}, received {parameter.get('type')!r}"
        )
    _members(parameter, {"type", kind}, set(), "header parameter")
    if expected == "TEXT":
        _text(parameter["text"], 60)
    elif expected == "LOCATION":
        _location(_object(parameter["location"], "location"))
    else:
        _media(_object(parameter[kind], kind), expected)


_SUFFIXES = {
    "IMAGE": frozenset({".jpg", ".jpeg", ".png"}),
    "VIDEO": frozenset({".mp4", ".3gp"}),
    "DOCUMENT": frozenset({".pdf"}),
}
_OTHER_SUFFIXES = frozenset(
    {".gif", ".webp", ".svg", ".bmp", ".tiff", ".mov", ".avi", ".webm", ".mkv", ".mp3", ".ogg"}
    | {".txt", ".doc", ".docx", ".xls", ".xlsx", ".html", ".zip"}
)
_KNOWN_SUFFIXES = _OTHER_SUFFIXES.union(*_SUFFIXES.values())
_YOUTUBE = re.compile(r"(^|\.)(youtube(-nocookie)?\.com|youtu\.be)$")


def _media(media: Json, expected: str) -> None:
    if media.keys() == {"id"} and isinstance(media["id"], str):
        return  # uploaded before
    _members(media, {"link"}, {"filename"} if expected == "DOCUMENT" else set(), expected.lower())
    if not isinstance(media.get("filename", "x"), str) or not media.get("filename", "x").strip():
        raise MisfitError(131009, "the filename is empty or not a string")
    link = media["link"]
    if not isinstance(link, str) or re.search(r"\s", link):
        raise MisfitError(131053, "the link is not a URL")
    try:
        url = urlsplit(link)
        host = url.hostname
    except ValueError:
        raise MisfitError(131053, "the link is not a URL") from None
    if url.scheme not in ("http", "https") or not host:
        raise MisfitError(131053, "the link is not an http or https URL")
    if _YOUTUBE.search(host):
        raise MisfitError(131053, "links to YouTube are not accepted")
    suffix = Path(url.path).suffix.lower()
    if suffix in _KNOWN_SUFFIXES and suffix not in _SUFFIXES[expected]:
        raise MisfitError(131053, f"{suffix} is no {expected.lower()} that WhatsApp takes")


def _location(location: Json) -> None:
    _members(location, {"latitude", "longitude", "name", "address"}, set(), "location")
    for name, limit in (("latitude", 90), ("longitude", 180)):
        try:
            degrees = float(location[name])
        except (TypeError, ValueError):
            raise MisfitError(131009, f"{name} is not a number") from None
        if not -limit <= degrees <= limit:
            raise MisfitError(131009, f"{name} is out of range")
    _text(location["name"], 1024)
    _text(location["address"], 1024)


def _check_body(component: Json | None, expected: int | list[str]) -> None:
    parameters = _parameters(component) if component else []
    wanted = expected if isinstance(expected, int) else len(expected)
    if len(parameters) != wanted:
        raise MisfitError(
            132000, f"body: {len(parameters)} parameters do not match the expected {wanted}"
        )
    named = {"parameter_name"} if isinstance(expected, list) else set()
    length = 0
    for parameter in parameters:
        match parameter.get("type"):
            case "text":
                _members(parameter, {"type", "text"} | named, set(), "parameter")
                length += len(_text(parameter["text"], 32768))
            case "currency":
                _members(parameter, {"type", "currency"} | named, set(), "parameter")
                length += _currency(_object(parameter["currency"], "currency"))
            case "date_time":
                _members(parameter, {"type", "date_time"} | named, set(), "parameter")
                date_time = _object(parameter["date_time"], "date_time")
                _members(date_time, {"fallback_value"}, set(), "date_time")
                length += len(_text(date_time["fallback_value"], 1024))
            case kind:
                raise MisfitError(132012, f"body: a parameter of type {kind!r}")
    if length > 1024:
        raise MisfitError(132005, "the body is longer than 1024 characters")
    if isinstance(expected, list):
        names = [parameter["parameter_name"] for parameter in parameters]
        if sorted(map(str, names)) != sorted(expected):
            raise MisfitError(132012, "body: these are not the template's parameter names")


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise MisfitError(132012, "a parameter's text is not a string")
    if not value.strip():
        raise MisfitError(131008, "a parameter's text is empty")
    if re.search(r"[\n\r\t]| {5}", value):
        raise MisfitError(
            132012,
            "param text cannot have new-line/tab characters or more than 4 consecutive spaces",
        )
    if len(value) > limit:
        raise MisfitError(132005, f"a text is longer than {limit} characters")
    return value


def _currency(currency: Json) -> int:
    _members(currency, {"fallback_value", "code", "amount_1000"}, set(), "currency")
    amount, code = currency["amount_1000"], currency["code"]
    if not isinstance(amount, int) or isinstance(amount, bool):
        raise MisfitError(131009, "amount_1000 is not an integer")
    if not (isinstance(code, str) and re.fullmatch("[A-Z]{3}", code)):
        raise MisfitError(131009, "the currency's code is not one of ISO 4217")
    return len(_text(currency["fallback_value"], 1024))


def _index(component: Json) -> int:
    index = component.get("index")
    if isinstance(index, str) and re.fullmatch("[0-9]", index):
        return int(index)
    if isinstance(index, int) and not isinstance(index, bool) and 0 <= index <= 9:
        return index
    raise MisfitError(131009, "a button's index is not one of 0 to 9")


# sub_type, the parameter's type, its member, the longest text (None: an object)
_BUTTONS = {
    "QUICK_REPLY": ("quick_reply", "payload", "payload", 256),
    "URL": ("url", "text", "text", 2000),
    "COPY_CODE": ("copy_code", "coupon_code", "coupon_code", 15),
    "FLOW": ("flow", "action", "action", None),
    "CATALOG": ("catalog", "action", "action", None),
    "MPM": ("mpm", "action", "action", None),
    "OTP": ("url", "text", "text", 15),
}


def _check_buttons(buttons: dict[int, Json], expected: list[Button]) -> None:
    for index, component in buttons.items():
        kind = expected[index] if index < len(expected) else None
        if kind not in _BUTTONS:
            raise MisfitError(132000, f"button {index} of the template takes no parameter")
        sub_type, parameter_type, member, limit = _BUTTONS[kind]
        _members(component, {"type", "sub_type", "index", "parameters"}, set(), "button")
        if component["sub_type"] != sub_type:
            raise MisfitError(132012, f"button {index}: expected {sub_type}")
        parameters = _list(component["parameters"], "parameters")
        if len(parameters) != 1:
            raise MisfitError(132000, f"button {index} needs one parameter")
        parameter = _object(parameters[0], "parameter")
        if parameter.get("type") != parameter_type:
            raise MisfitError(
                132012, f"button {index}: a parameter of type {parameter.get('type')!r}"
            )
        _members(parameter, {"type", member}, set(), "parameter")
        value = parameter[member]
        if limit is None:
            _object(value, member)
        elif not isinstance(value, str) or not value.strip() or len(value) > limit:
            raise MisfitError(131009, f"button {index}: the {member} is empty or too long")
    for index, kind in enumerate(expected):
        # A quick reply without a payload sends its label; the others cannot do without.
        if kind in ("URL", "COPY_CODE", "OTP", "MPM") and index not in buttons:
            raise MisfitError(131008, f"button {index} of type {kind} requires a parameter")


def _check_code(body: Json | None, button: Json) -> None:
    """Check that a one-time code is the same in the text and on the button that copies it."""
    shown = body["parameters"][0].get("text") if body and body["parameters"] else None
    if shown != button["parameters"][0]["text"]:
        raise MisfitError(131009, "the button's code is not the one in the body")


def _check_cards(carousel: Json | None, expected: list[Shape]) -> None:
    if carousel is None:
        raise MisfitError(131008, "the template needs its carousel")
    _members(carousel, {"type", "cards"}, set(), "carousel")
    cards = _list(carousel["cards"], "cards")
    if len(cards) != len(expected):
        raise MisfitError(132000, f"carousel: {len(cards)} cards, expected {len(expected)}")
    for index, (card, shape) in enumerate(zip(cards, expected, strict=True)):
        sent = _object(card, "card")
        _members(sent, {"card_index", "components"}, set(), "card")
        if sent["card_index"] != index:
            raise MisfitError(132012, "the cards are not in order")
        _check_components(sent["components"], shape, None)
