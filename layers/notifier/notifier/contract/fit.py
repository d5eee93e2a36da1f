"""Whether a request's template fits what WhatsApp has registered under its name and language.

BLiP answers 202 to a message that does not fit, and WhatsApp refuses it minutes later. Refused here
is only what WhatsApp would surely refuse; whatever is doubtful passes. WhatsApp's own list,
`components`, may hold anything.

Sources: Meta's Cloud API, template messages; its error codes 132000, 132005 and 132012.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from notifier.contract.problems import MAX_FIELD_ERRORS
from notifier.contract.template import BodyValue, HeaderText, Template
from notifier.domain.failures import FieldError
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    Shape,
    Translation,
    Variables,
)

# In characters, with the values filled in.
MAX_HEADER = 60
MAX_BODY = 1024
# Of a message that brings nothing else (Meta's reference of the parameter object).
MAX_BODY_ALONE = 32_768

_WITH_ARTICLE = {
    HeaderKind.TEXT: "a text",
    HeaderKind.IMAGE: "an image",
    HeaderKind.VIDEO: "a video",
    HeaderKind.DOCUMENT: "a document",
    HeaderKind.LOCATION: "a location",
}
_MEDIA = _WITH_ARTICLE.keys() - {HeaderKind.TEXT}
# What a text takes.
_TEXTS = frozenset({"text", "currency", "date_time"})

_CODE = "template.otp"

# The buttons that cannot do without a value, and what it is.
_NEEDED = {
    ButtonKind.URL: "the end of its link",
    ButtonKind.COPY_CODE: "its coupon",
    ButtonKind.OTP: "its one-time code",
}
# By WhatsApp's `sub_type`, which calls the button of a one-time code a url button.
_TAKEN: dict[ButtonKind, str] = {
    ButtonKind.QUICK_REPLY: "quick_reply",
    ButtonKind.URL: "url",
    ButtonKind.COPY_CODE: "copy_code",
    ButtonKind.OTP: "url",
}
_SUB_TYPES = frozenset({"quick_reply", "url", "copy_code", "flow", "catalog", "mpm"})


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a request.

    Attributes:
        kind: of a header's or a button's; None if it is not known here.
        length: of its text, in characters.
        name: of the variable that it fills; None if it goes by its position.
    """

    kind: str | None = None
    length: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What a request brings for one part of a template.

    Attributes:
        field: where.
        values: None if they cannot be read; then they are not checked.
    """

    field: str
    values: tuple[_Value, ...] | None = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a request brings for a template, or for a card of its carousel.

    Attributes:
        field: that lacks what is missing.
        buttons: by their index in the template.
        is_whole: False if something of it cannot be read: then no button is missed.
    """

    field: str
    header: _Part
    body: _Part
    buttons: Mapping[int, _Part]
    is_whole: bool = True


def misfits(template: Template, translation: Translation) -> tuple[FieldError, ...]:
    """Return what of a request's template does not fit; nothing if it fits, or may fit."""
    if template.otp is not None and translation.category not in {None, Category.AUTHENTICATION}:
        problem = f"the template's category is {translation.category}, and not AUTHENTICATION"
        return (FieldError(_CODE, problem),)
    if not translation.is_understood:
        return ()
    return tuple(islice(_misfits(template, translation), MAX_FIELD_ERRORS))


def _misfits(template: Template, translation: Translation) -> Iterator[FieldError]:
    components = template.components
    if components is None:
        yield from _of_shape(_by_fields(template), translation.shape, has_more=False)
        if translation.cards:
            yield _carousel_missing(translation.cards)
        return
    sent = _by_components(components, "template.components")
    carousels = [
        (f"template.components[{position}]", component)
        for position, component in enumerate(components)
        if _lowered(component.get("type")) == "carousel"
    ]
    yield from _of_shape(sent, translation.shape, has_more=bool(carousels))
    if translation.cards and not carousels:
        yield _carousel_missing(translation.cards)
    if len(carousels) == 1:
        yield from _of_carousel(*carousels[0], translation.cards)


# --- What has to fit ------------------------------------------------------------------------------


def _of_shape(sent: _Sent, shape: Shape, *, has_more: bool) -> Iterator[FieldError]:
    """Compare what a request brings with what a template, or a card, takes.

    Args:
        sent: what the request brings.
        shape: what the template takes.
        has_more: whether the message has a carousel, or is a card of one.
    """
    yield from _of_header(sent.header, shape)
    alone = not (has_more or sent.header.values != () or sent.buttons)
    yield from _of_body(sent.body, shape, MAX_BODY_ALONE if alone else MAX_BODY)
    yield from _of_buttons(sent, shape.buttons)


def _of_header(part: _Part, shape: Shape) -> Iterator[FieldError]:
    values, wanted = part.values, shape.header
    if values is None:
        return
    if wanted is None:
        if values:
            yield FieldError(part.field, "the template's header takes no value")
    elif not values:
        yield FieldError(part.field, f"the template's header needs {_WITH_ARTICLE[wanted]}")
    elif len(values) > 1:
        problem = f"the template's header takes one value, {len(values)} came"
        yield FieldError(part.field, problem)
    else:
        yield from _of_header_value(part.field, values[0], wanted, shape.header_length)


def _of_header_value(
    field: str, value: _Value, wanted: HeaderKind, fixed: int
) -> Iterator[FieldError]:
    kind = value.kind
    if kind is not None and kind != wanted:
        came = _WITH_ARTICLE[HeaderKind(kind)]
        problem = f"the template's header needs {_WITH_ARTICLE[wanted]}, {came} came"
        yield FieldError(field, problem)
    elif wanted is HeaderKind.TEXT and fixed + value.length > MAX_HEADER:
        yield _too_long(field, "header", fixed + value.length, MAX_HEADER)


def _of_body(part: _Part, shape: Shape, limit: int) -> Iterator[FieldError]:
    values = part.values
    if values is None:
        return
    problem = _wrong_values(values, shape.body)
    media = next((value.kind for value in values if value.kind in _MEDIA), None)
    length = shape.body_length + sum(value.length for value in values)
    if problem:
        yield FieldError(part.field, problem)
    elif media is not None:
        came = _WITH_ARTICLE[HeaderKind(media)]
        yield FieldError(part.field, f"the template's body takes texts, {came} came")
    elif values and length > limit:
        yield _too_long(part.field, "body", length, limit)


def _wrong_values(values: tuple[_Value, ...], variables: Variables) -> str | None:
    """Return what is wrong with a body's values; None if nothing is."""
    names = {value.name for value in values if value.name is not None}
    if isinstance(variables, int):
        if variables and names:
            return "the template's variables go by position, values by name came"
        wanted = variables
    else:
        if variables and values and not names:
            return "the template's variables have names, values by position came"
        missing = [name for name in variables if name not in names]
        if values and missing:
            verb = "is" if len(missing) == 1 else "are"
            return f"of the template's variables {', '.join(missing[:5])} {verb} missing"
        wanted = len(variables)
    if len(values) == wanted:
        return None
    return f"the template has {_counted(wanted, 'variable')}, {_counted(len(values), 'value')} came"


def _of_buttons(sent: _Sent, kinds: tuple[ButtonKind, ...]) -> Iterator[FieldError]:
    for index, part in sent.buttons.items():
        if index >= len(kinds):
            yield FieldError(part.field, f"the template has no button at index {index}")
        elif problem := _wrong_button(part.values, kinds[index]):
            yield FieldError(part.field, f"button {index} of the template {problem}")
    for index, kind in enumerate(kinds):
        if kind in _NEEDED and index not in sent.buttons and sent.is_whole:
            yield FieldError(sent.field, f"button {index} of the template needs {_NEEDED[kind]}")


def _wrong_button(values: tuple[_Value, ...] | None, kind: ButtonKind) -> str | None:
    """Return what is wrong with a button's values; None if nothing is."""
    if values is None or kind is ButtonKind.OTHER:
        return None
    if not values:
        return f"needs {_NEEDED[kind]}" if kind in _NEEDED else None
    came = values[0].kind
    if came is None:
        return None
    if kind not in _TAKEN:
        return "takes no value: index says which button a value is for"
    if came != _TAKEN[kind]:
        return f"takes a value of type {_TAKEN[kind]}, one of type {came} came"
    return f"takes one value, {len(values)} came" if len(values) > 1 else None


def _of_carousel(
    field: str, carousel: Mapping[str, object], shapes: tuple[Shape, ...]
) -> Iterator[FieldError]:
    cards = carousel.get("cards")
    if not shapes:
        yield FieldError(field, "the template has no carousel")
    elif not isinstance(cards, list):
        return
    elif len(cards) != len(shapes):
        having, came = _counted(len(shapes), "card"), _counted(len(cards), "card")
        problem = f"the template has {having}, {came} came"
        yield FieldError(f"{field}.cards", problem)
    else:
        taken: set[int] = set()
        for position, card in enumerate(cards):
            if isinstance(card, dict):
                yield from _of_card(f"{field}.cards[{position}]", card, shapes, taken)


def _of_card(
    field: str, card: Mapping[str, object], shapes: tuple[Shape, ...], taken: set[int]
) -> Iterator[FieldError]:
    """Compare a card with that of the template which it names; add it to those taken."""
    index = _index(card.get("card_index"))
    if index is None:
        return
    if index >= len(shapes):
        yield FieldError(f"{field}.card_index", "the template has no card of this number")
    elif index in taken:
        yield FieldError(f"{field}.card_index", "two cards have this number")
    else:
        taken.add(index)
        sent = _by_components(card.get("components"), f"{field}.components")
        yield from _of_shape(sent, shapes[index], has_more=True)


def _carousel_missing(cards: tuple[Shape, ...]) -> FieldError:
    having = _counted(len(cards), "card")
    problem = f"the template has a carousel of {having}: components have to bring it"
    return FieldError("template.components", problem)


def _too_long(field: str, part: str, length: int, limit: int) -> FieldError:
    problem = f"the {part} has {length} characters with its values, WhatsApp takes {limit}"
    return FieldError(field, problem)


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'s' if count != 1 else ''}"


# --- What a request brings ------------------------------------------------------------------------


def _by_fields(template: Template) -> _Sent:
    if template.otp is not None:
        code = _Part(_CODE, (_Value(None, len(template.otp)),))
        return _Sent(_CODE, _Part(_CODE), code, {0: _Part(_CODE, (_Value("url"),))})
    header: tuple[_Value, ...] = ()
    if template.header is not None:
        length = len(template.header.text) if isinstance(template.header, HeaderText) else 0
        header = (_Value(template.header.type, length),)
    values = template.body or {}
    if isinstance(values, dict):
        body = tuple(_Value(None, _length(value), name) for name, value in values.items())
    else:
        body = tuple(_Value(None, _length(value)) for value in values)
    buttons = {
        position if button.index is None else button.index: _Part(
            f"template.buttons[{position}]", (_Value(button.type),)
        )
        for position, button in enumerate(template.buttons)
    }
    return _Sent(
        "template.buttons",
        _Part("template.header", header),
        _Part("template.body", body),
        buttons,
    )


def _length(value: BodyValue) -> int:
    return len(value if isinstance(value, str) else value.fallback_value)


def _by_components(components: object, field: str) -> _Sent:
    """Read WhatsApp's own list. What it has twice counts as not readable."""
    if not isinstance(components, list):
        return _Sent(field, _Part(field, None), _Part(field, None), {}, is_whole=False)
    parts: dict[str, _Part] = {}
    buttons: dict[int, _Part] = {}
    absent = _Part(field)
    is_whole = True
    for position, component in enumerate(components):
        where = f"{field}[{position}]"
        kind = _lowered(component.get("type")) if isinstance(component, dict) else None
        if kind in {"header", "body"}:
            values = None if kind in parts else _values(component)
            parts[kind] = _Part(f"{where}.parameters", values)
        elif kind == "button":
            index = _index(component.get("index"))
            if index is None or index in buttons:
                is_whole = False
            else:
                buttons[index] = _Part(where, _button_values(component))
        elif kind is None:  # it may be any of them
            absent = _Part(field, None)
            is_whole = False
    return _Sent(field, parts.get("header", absent), parts.get("body", absent), buttons, is_whole)


def _values(component: Mapping[str, object]) -> tuple[_Value, ...] | None:
    parameters = component.get("parameters")
    if parameters is None:
        return ()
    return tuple(map(_value, parameters)) if isinstance(parameters, list) else None


def _value(parameter: object) -> _Value:
    if not isinstance(parameter, dict):
        return _Value()
    kind = _lowered(parameter.get("type"))
    text = parameter.get("text")
    if kind in _TEXTS - {"text"}:
        content = parameter.get(kind)
        text = content.get("fallback_value") if isinstance(content, dict) else None
    name = parameter.get("parameter_name")
    return _Value(
        HeaderKind.TEXT if kind in _TEXTS else kind if kind in _WITH_ARTICLE else None,
        len(text) if kind in _TEXTS and isinstance(text, str) else 0,
        # A number is a position to some producers.
        name if isinstance(name, str) and not name.isdecimal() else None,
    )


def _button_values(component: Mapping[str, object]) -> tuple[_Value, ...] | None:
    values = _values(component)
    sub_type = _lowered(component.get("sub_type"))
    kind = sub_type if sub_type in _SUB_TYPES else None
    return values and tuple(_Value(kind) for _ in values)


def _lowered(kind: object) -> str | None:
    """Return WhatsApp's word for a kind of thing; its own pages write some in capitals."""
    return kind.lower() if isinstance(kind, str) else None


def _index(value: object) -> int | None:
    """Return an index, which may be a text; None if it is none."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,2}", value):
        return int(value)
    return value if type(value) is int and value >= 0 else None
