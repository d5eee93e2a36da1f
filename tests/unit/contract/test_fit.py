"""Whether a request's template fits the registered one: each misfit, and what passes."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.contract.fit import misfits
from notifier.contract.parse import parse
from notifier.contract.template import Template
from notifier.domain.failures import FieldError
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    Shape,
    TemplateStatus,
    Translation,
)
from tests.support.templates import translations
from tests.unit.blip.test_envelopes import SENDS
from tests.unit.contract.helpers import CURRENCY, LINK
from tests.unit.contract.test_documents import SAMPLES, USABLE

type Json = dict[str, Any]

TRANSLATIONS = translations()


def sample(name: str) -> Json:
    """Return the template of a sample, to be changed."""
    path = Path(name)
    content: Json = json.loads(SAMPLES[f"{path}.json"])["template"]
    return copy.deepcopy(content)


def problems(template: Json, translation: Translation | None = None) -> list[tuple[str, str]]:
    """Return the misfits of a template's JSON, with the simulator's template of its name."""
    read = Template.model_validate(template)
    registered = translation or TRANSLATIONS[read.name, read.language]
    return [(error.field, error.problem) for error in misfits(read, registered)]


def approved(shape: Shape, *cards: Shape) -> Translation:
    return Translation(TemplateStatus.APPROVED, shape=shape, cards=cards)


# --- What fits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", USABLE)
def test_samples_fit_their_templates(name: str) -> None:
    template = parse(SAMPLES[name]).request.template
    assert misfits(template, TRANSLATIONS[template.name, template.language]) == ()


def test_one_time_code_fits_whatever_the_list_calls_its_button() -> None:
    template = parse(SAMPLES["13-one-time-code.json"]).request.template
    name = (template.name, template.language)
    for otp_button in ("URL", "OTP"):
        translation = translations(otp_button)[name]
        assert translation.category is Category.AUTHENTICATION
        assert misfits(template, translation) == ()


# What the templates of BLiP's own document must be, by its requests.
DOCUMENT = {
    "2-text": Shape(body=2),
    "3-image": Shape(HeaderKind.IMAGE),
    "4-video": Shape(HeaderKind.VIDEO),
    "5-document": Shape(HeaderKind.DOCUMENT, body=1),
    "6-quick-reply": Shape(body=1, buttons=(ButtonKind.QUICK_REPLY, ButtonKind.QUICK_REPLY)),
}


@pytest.mark.parametrize("name", SENDS)
def test_requests_of_the_document_fit_their_templates(name: str) -> None:
    template = {"name": "pedido_enviado", "language": "pt_BR"} | SENDS[name]
    assert problems(template, approved(DOCUMENT[name])) == []


def test_quick_reply_may_go_without_a_payload() -> None:
    assert problems(sample("05-quick-reply") | {"buttons": []}) == []


# --- What does not fit ----------------------------------------------------------------------------

VIDEO = {"type": "video", "link": "https://example.com/a.mp4"}
IMAGE = {"type": "image", "link": LINK}
DOCUMENT_HEADER = {"type": "document", "link": "https://example.com/a.pdf", "filename": "a.pdf"}
HEADER_TEXT = {"type": "text", "text": "Pedido"}
LOCATION = sample("09-location")["header"]
QUICK_REPLY = {"type": "quick_reply", "payload": "YES"}
URL = {"type": "url", "text": "981"}
COUPON = {"type": "copy_code", "coupon": "ABC"}
TEXT = {"type": "text", "text": "a"}

TEXT_BODY = "template.body"
HEADER = "template.header"
TAKES_NONE = "takes no value: index says which button a value is for"


def offers(**changes: Any) -> Json:
    """Return the sample of a carousel; `changes` replace what its carousel has."""
    template = sample("12-components")
    template["components"][1] |= changes
    return template


def cards() -> list[Json]:
    found: list[Json] = sample("12-components")["components"][1]["cards"]
    return found


def card(number: int, *, header: Any = 0, button: Any = 0, more: Any = ()) -> list[Json]:
    """Return the sample's cards, with a card's components changed; None leaves one out."""
    changed = cards()
    components = changed[number]["components"]
    for place, component in ((1, button), (0, header)):
        if component is None:
            del components[place]
        elif component:
            components[place] = component
    components.extend(more)
    return changed


def components(name: str, *parts: Json) -> Json:
    """Return a template of WhatsApp's own list."""
    return {"name": name, "language": "pt_BR", "components": list(parts)}


def body(*values: Json) -> Json:
    return {"type": "body", "parameters": list(values)}


def header(value: Json) -> Json:
    return {"type": "header", "parameters": [value]}


def button(sub_type: str, index: int | str, *values: Json) -> Json:
    return {"type": "button", "sub_type": sub_type, "index": index, "parameters": list(values)}


IMAGE_HEADER = header({"type": "image", "image": {"link": LINK}})

MISFITS: dict[str, tuple[Json, list[tuple[str, str]]]] = {
    "one value too many": (
        sample("01-text") | {"body": ["a", "b", "c"]},
        [(TEXT_BODY, "the template has 2 variables, 3 values came")],
    ),
    "one value too few": (
        sample("01-text") | {"body": ["a"]},
        [(TEXT_BODY, "the template has 2 variables, 1 value came")],
    ),
    "no body": (
        sample("01-text") | {"body": None},
        [(TEXT_BODY, "the template has 2 variables, no values came")],
    ),
    "a value for a template without variables": (
        sample("03-video") | {"body": ["a"]},
        [(TEXT_BODY, "the template has no variables, 1 value came")],
    ),
    "an amount left out": (
        sample("11-currency-date-time") | {"body": ["Sofia", CURRENCY]},
        [(TEXT_BODY, "the template has 3 variables, 2 values came")],
    ),
    "values by name for those by position": (
        sample("01-text") | {"body": {"customer": "a", "order": "b"}},
        [(TEXT_BODY, "the template's variables go by position, values by name came")],
    ),
    "values by position for those by name": (
        sample("10-named-parameters") | {"body": ["a", "b"]},
        [(TEXT_BODY, "the template's variables have names, values by position came")],
    ),
    "a name misspelt": (
        sample("10-named-parameters") | {"body": {"customer": "a", "duedate": "b"}},
        [(TEXT_BODY, "of the template's variables due_date is missing")],
    ),
    "both names misspelt": (
        sample("10-named-parameters") | {"body": {"client": "a", "duedate": "b"}},
        [(TEXT_BODY, "of the template's variables customer, due_date are missing")],
    ),
    "one name too many": (
        sample("10-named-parameters") | {"body": {"customer": "a", "due_date": "b", "x": "c"}},
        [(TEXT_BODY, "the template has 2 variables, 3 values came")],
    ),
    "an image where a video is wanted": (
        sample("03-video") | {"header": IMAGE},
        [(HEADER, "the template's header needs a video, an image came")],
    ),
    "a video where an image is wanted": (
        sample("02-image") | {"header": VIDEO},
        [(HEADER, "the template's header needs an image, a video came")],
    ),
    "a text where a document is wanted": (
        sample("04-document") | {"header": HEADER_TEXT},
        [(HEADER, "the template's header needs a document, a text came")],
    ),
    "a document where a place is wanted": (
        sample("09-location") | {"header": DOCUMENT_HEADER},
        [(HEADER, "the template's header needs a location, a document came")],
    ),
    "a place where a text is wanted": (
        sample("06-header-text") | {"header": LOCATION},
        [(HEADER, "the template's header needs a text, a location came")],
    ),
    "no image": (
        sample("02-image") | {"header": None},
        [(HEADER, "the template's header needs an image")],
    ),
    "no header text": (
        sample("06-header-text") | {"header": None},
        [(HEADER, "the template's header needs a text")],
    ),
    "an image for a template without one": (
        sample("01-text") | {"header": IMAGE},
        [(HEADER, "the template's header takes no value")],
    ),
    "no image and a value too few": (
        sample("02-image") | {"header": None, "body": []},
        [
            (HEADER, "the template's header needs an image"),
            (TEXT_BODY, "the template has 1 variable, no values came"),
        ],
    ),
    "a text that grows too long below a header": (
        sample("06-header-text") | {"body": ["x" * 500, "y" * 487]},
        [(TEXT_BODY, "the body has 1025 characters with its values, WhatsApp takes 1024")],
    ),
    "no end of a link": (
        sample("07-url-button") | {"buttons": []},
        [("template.buttons", "button 1 of the template needs the end of its link")],
    ),
    "the end of a link for the button before it": (
        sample("07-url-button") | {"buttons": [URL]},
        [
            ("template.buttons[0]", f"button 0 of the template {TAKES_NONE}"),
            ("template.buttons", "button 1 of the template needs the end of its link"),
        ],
    ),
    "a payload for a link": (
        sample("07-url-button") | {"buttons": [QUICK_REPLY | {"index": 1}]},
        [
            (
                "template.buttons[0]",
                "button 1 of the template takes a value of type url, one of type quick_reply came",
            )
        ],
    ),
    "no coupon": (
        sample("08-copy-code") | {"buttons": []},
        [("template.buttons", "button 0 of the template needs its coupon")],
    ),
    "a link for a coupon": (
        sample("08-copy-code") | {"buttons": [URL]},
        [
            (
                "template.buttons[0]",
                "button 0 of the template takes a value of type copy_code, one of type url came",
            )
        ],
    ),
    "a coupon for an answer": (
        sample("05-quick-reply") | {"buttons": [QUICK_REPLY, COUPON]},
        [
            (
                "template.buttons[1]",
                "button 1 of the template takes a value of type quick_reply, "
                "one of type copy_code came",
            )
        ],
    ),
    "a third answer": (
        sample("05-quick-reply") | {"buttons": [QUICK_REPLY] * 3},
        [("template.buttons[2]", "the template has no button at index 2")],
    ),
    "an answer for a template without buttons": (
        sample("01-text") | {"buttons": [QUICK_REPLY]},
        [("template.buttons[0]", "the template has no button at index 0")],
    ),
    "a carousel's template without its cards": (
        {"name": "seasonal_offers", "language": "pt_BR", "body": ["Marina"]},
        [
            (
                "template.components",
                "the template has a carousel of 2 cards: components have to bring it",
            )
        ],
    ),
    "a carousel for a template without one": (
        components("order_shipped", body(TEXT, TEXT), {"type": "carousel", "cards": []}),
        [("template.components[1]", "the template has no carousel")],
    ),
    "a component's value too many": (
        components("order_shipped", body(TEXT, TEXT, TEXT)),
        [
            (
                "template.components[0].parameters",
                "the template has 2 variables, 3 values came",
            )
        ],
    ),
    "components without a body": (
        components("order_photo", IMAGE_HEADER),
        [("template.components", "the template has 1 variable, no values came")],
    ),
    "components without an image": (
        components("order_photo", body(TEXT)),
        [("template.components", "the template's header needs an image")],
    ),
    "a component's values by name": (
        components(
            "order_shipped", body(TEXT | {"parameter_name": "a"}, TEXT | {"parameter_name": "b"})
        ),
        [
            (
                "template.components[0].parameters",
                "the template's variables go by position, values by name came",
            )
        ],
    ),
    "a component's body that grows too long": (
        components(
            "track_order",
            body({"type": "text", "text": "x" * 1000}),
            button("url", "1", TEXT),
        ),
        [
            (
                "template.components[0].parameters",
                "the body has 1025 characters with its values, WhatsApp takes 1024",
            )
        ],
    ),
    "a component's date that grows too long": (
        components(
            "track_order",
            body({"type": "date_time", "date_time": {"fallback_value": "x" * 1000}}),
            button("url", "1", TEXT),
        ),
        [
            (
                "template.components[0].parameters",
                "the body has 1025 characters with its values, WhatsApp takes 1024",
            )
        ],
    ),
    "an image in a body": (
        components("order_shipped", body(TEXT, {"type": "image", "image": {"link": LINK}})),
        [
            (
                "template.components[0].parameters",
                "the template's body takes texts, an image came",
            )
        ],
    ),
    "two header components' values": (
        components(
            "order_photo",
            {"type": "header", "parameters": IMAGE_HEADER["parameters"] * 2},
            body(TEXT),
        ),
        [
            (
                "template.components[0].parameters",
                "the template's header takes one value, 2 came",
            )
        ],
    ),
    "a button component for a call": (
        components("track_order", body(TEXT), button("url", "1", TEXT), button("url", 0, TEXT)),
        [("template.components[2]", f"button 0 of the template {TAKES_NONE}")],
    ),
    "a button component without its value": (
        components("track_order", body(TEXT), button("url", "1")),
        [("template.components[1]", "button 1 of the template needs the end of its link")],
    ),
    "no button component": (
        components("track_order", body(TEXT)),
        [("template.components", "button 1 of the template needs the end of its link")],
    ),
    "a button component with two values": (
        components("track_order", body(TEXT), button("url", 1, TEXT, TEXT)),
        [("template.components[1]", "button 1 of the template takes one value, 2 came")],
    ),
    "a button component of another type": (
        components("track_order", body(TEXT), button("flow", 1, TEXT)),
        [
            (
                "template.components[1]",
                "button 1 of the template takes a value of type url, one of type flow came",
            )
        ],
    ),
    "one card too few": (
        offers(cards=cards()[:1]),
        [("template.components[1].cards", "the template has 2 cards, 1 card came")],
    ),
    "one card too many": (
        offers(cards=[*cards(), cards()[0]]),
        [("template.components[1].cards", "the template has 2 cards, 3 cards came")],
    ),
    "one card twice": (
        offers(cards=[cards()[0], cards()[0]]),
        [("template.components[1].cards[1].card_index", "two cards have this number")],
    ),
    "a card of another number": (
        offers(cards=[cards()[0], cards()[1] | {"card_index": 2}]),
        [
            (
                "template.components[1].cards[1].card_index",
                "the template has no card of this number",
            )
        ],
    ),
    "a card without its image": (
        offers(cards=card(1, header=None)),
        [
            (
                "template.components[1].cards[1].components",
                "the template's header needs an image",
            )
        ],
    ),
    "a card with a video": (
        offers(cards=card(0, header=header({"type": "video", "video": {"link": LINK}}))),
        [
            (
                "template.components[1].cards[0].components[0].parameters",
                "the template's header needs an image, a video came",
            )
        ],
    ),
    "a card with a link": (
        offers(cards=card(1, button=button("url", 0, TEXT))),
        [
            (
                "template.components[1].cards[1].components[1]",
                "button 0 of the template takes a value of type quick_reply, one of type url came",
            )
        ],
    ),
    "a card with a value": (
        offers(cards=card(0, more=[body(TEXT)])),
        [
            (
                "template.components[1].cards[0].components[2].parameters",
                "the template has no variables, 1 value came",
            )
        ],
    ),
    "a carousel without the text above it": (
        components("seasonal_offers", sample("12-components")["components"][1]),
        [("template.components", "the template has 1 variable, no values came")],
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_names_field_and_problem(name: str) -> None:
    template, expected = MISFITS[name]
    assert problems(template) == expected


def test_header_and_fixed_text_together_are_60_characters_at_most() -> None:
    translation = approved(Shape(HeaderKind.TEXT, header_length=10))
    template = {"name": "a", "language": "en", "header": {"type": "text", "text": "x" * 50}}
    assert problems(template, translation) == []

    template["header"] = {"type": "text", "text": "x" * 51}
    assert problems(template, translation) == [
        (HEADER, "the header has 61 characters with its values, WhatsApp takes 60")
    ]


def test_body_that_comes_alone_may_have_32768_characters() -> None:
    translation = approved(Shape(body=1, body_length=768))
    template = {"name": "a", "language": "en", "body": ["x" * 32_000]}
    assert problems(template, translation) == []

    template["body"] = ["x" * 32_001]
    assert problems(template, translation) == [
        (TEXT_BODY, "the body has 32769 characters with its values, WhatsApp takes 32768")
    ]


def test_body_without_variables_is_never_too_long() -> None:
    assert problems({"name": "a", "language": "en"}, approved(Shape(body_length=40_000))) == []


def test_words_of_variables_that_are_missing_are_five_at_most() -> None:
    translation = approved(Shape(body=tuple("abcdefg")))
    assert problems({"name": "a", "language": "en", "body": {"x": "1"}}, translation) == [
        (TEXT_BODY, "of the template's variables a, b, c, d, e are missing")
    ]


def test_misfits_are_twenty_at_most() -> None:
    buttons = [button("url", index, TEXT) for index in range(30)]
    assert len(problems(components("order_shipped", body(TEXT, TEXT), *buttons))) == 20


LINKED_CARD = approved(Shape(), Shape(body=1, buttons=(ButtonKind.URL,)))


def linked_card(parts: Any) -> Json:
    """Return a template of one card with these components."""
    return components("a", {"type": "carousel", "cards": [{"card_index": 0, "components": parts}]})


def test_body_of_a_card_does_not_come_alone() -> None:
    long = body({"type": "text", "text": "x" * 1025})
    assert problems(linked_card([long]), LINKED_CARD) == [
        (
            "template.components[0].cards[0].components[0].parameters",
            "the body has 1025 characters with its values, WhatsApp takes 1024",
        ),
        (
            "template.components[0].cards[0].components",
            "button 0 of the template needs the end of its link",
        ),
    ]


@pytest.mark.parametrize("parts", [None, {}, "x", [None], [{"type": 7}]])
def test_card_of_which_something_cannot_be_read_lacks_nothing(parts: object) -> None:
    assert problems(linked_card(parts), LINKED_CARD) == []


# --- One-time codes -------------------------------------------------------------------------------

CODE: Json = {"name": "login_code", "language": "pt_BR", "otp": "418205"}
AUTHENTICATION = Translation(
    TemplateStatus.APPROVED,
    category=Category.AUTHENTICATION,
    shape=Shape(body=1, body_length=60, buttons=(ButtonKind.OTP,)),
)


@pytest.mark.parametrize("kind", [ButtonKind.OTP, ButtonKind.URL, ButtonKind.OTHER])
def test_one_time_code_fits_an_authentication_template(kind: ButtonKind) -> None:
    translation = replace(AUTHENTICATION, shape=replace(AUTHENTICATION.shape, buttons=(kind,)))
    assert problems(CODE, translation) == []


@pytest.mark.parametrize("is_understood", [True, False])
@pytest.mark.parametrize("category", [Category.UTILITY, Category.MARKETING])
def test_one_time_code_fits_no_template_of_another_category(
    category: Category, *, is_understood: bool
) -> None:
    translation = replace(AUTHENTICATION, category=category, is_understood=is_understood)
    assert problems(CODE, translation) == [
        ("template.otp", f"the template's category is {category}, and not AUTHENTICATION")
    ]


def test_one_time_code_may_fit_a_template_of_unknown_category() -> None:
    assert problems(CODE, replace(AUTHENTICATION, category=None)) == []


def test_authentication_template_that_takes_more_than_a_code_names_it() -> None:
    shape = Shape(HeaderKind.IMAGE, body=2, buttons=(ButtonKind.STATIC,))
    assert problems(CODE, replace(AUTHENTICATION, shape=shape)) == [
        ("template.otp", "the template's header needs an image"),
        ("template.otp", "the template has 2 variables, 1 value came"),
        ("template.otp", f"button 0 of the template {TAKES_NONE}"),
    ]


def test_code_written_as_body_and_button_fits_an_authentication_template() -> None:
    without = {"name": "login_code", "language": "pt_BR", "body": ["418205"]}
    assert problems(without | {"buttons": [URL]}, AUTHENTICATION) == []
    assert problems(without, AUTHENTICATION) == [
        ("template.buttons", "button 0 of the template needs its one-time code")
    ]


# --- What is doubtful -----------------------------------------------------------------------------

DOUBTFUL: dict[str, Json] = {
    "capitals": components(
        "order_photo",
        {"type": "HEADER", "parameters": [{"type": "IMAGE", "image": {"link": LINK}}]},
        {"type": "Body", "parameters": [TEXT]},
    ),
    "an unknown component": components(
        "order_shipped", body(TEXT, TEXT), {"type": "tap_target_configuration"}
    ),
    "two bodies": components("order_shipped", body(TEXT, TEXT), body(TEXT)),
    "parameters that are no list": components("order_shipped", {"type": "body", "parameters": 7}),
    "a value of an unknown type": components("order_shipped", body(TEXT, {"type": "emoji"})),
    "a header of an unknown type": components("order_photo", header({"type": "gif"}), body(TEXT)),
    "positions as names": components(
        "order_shipped", body(TEXT | {"parameter_name": "1"}, TEXT | {"parameter_name": "2"})
    ),
    "a button without an index": components(
        "track_order", body(TEXT), {"type": "button", "sub_type": "url", "parameters": [TEXT]}
    ),
    "a button's index in words": components("track_order", body(TEXT), button("url", "one", TEXT)),
    "a button of an unknown type": components(
        "track_order", body(TEXT), button("voice_call", "1", TEXT)
    ),
    "cards in another order": offers(cards=cards()[::-1]),
    "cards without a number": offers(cards=[{"components": []}, {"components": []}]),
    "cards that are no objects": offers(cards=[1, None]),
    "a card's components that are no list": offers(cards=[{"card_index": 0, "components": {}}, {}]),
    "a card's component that is no object": offers(
        cards=[{"card_index": "0", "components": [None]}, {"card_index": "1", "components": [7]}]
    ),
    "cards that are no list": offers(cards="two"),
    "two carousels": components(
        "seasonal_offers", body(TEXT), {"type": "carousel"}, {"type": "carousel"}
    ),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_is_doubtful_passes(name: str) -> None:
    assert problems(DOUBTFUL[name]) == []


def test_translation_that_is_not_understood_refuses_nothing() -> None:
    translation = replace(TRANSLATIONS["order_photo", "pt_BR"], is_understood=False)
    for template, _ in MISFITS.values():
        assert problems(template, translation) == []


def test_button_that_is_not_known_takes_anything() -> None:
    translation = approved(Shape(buttons=(ButtonKind.OTHER,)))
    for value in ([], [URL], [COUPON], [QUICK_REPLY]):
        assert problems({"name": "a", "language": "en", "buttons": value}, translation) == []


# --- Anything at all ------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("header", "body", "button", "carousel", "text", "image", "currency", "date_time"),
        *("BODY", "url", "quick_reply", "copy_code", "flow", "0", "1", "99", "²", "9" * 5000, ""),
    ]
)
KEYS = st.sampled_from(
    [
        *("type", "parameters", "sub_type", "index", "cards", "card_index", "components", "text"),
        *("currency", "date_time", "fallback_value", "parameter_name", "image"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=30,
)
COMPONENTS = st.lists(
    st.builds(
        lambda kind, rest: rest | {"type": kind},
        WORDS,
        st.dictionaries(KEYS, JSON, max_size=5),
    ),
    min_size=1,
    max_size=5,
)
SHAPES = st.builds(
    Shape,
    header=st.none() | st.sampled_from(HeaderKind),
    header_length=st.integers(0, 70),
    body=st.integers(0, 3) | st.sampled_from([(), ("a",), ("a", "b")]),
    body_length=st.integers(0, 1100),
    buttons=st.lists(st.sampled_from(ButtonKind), max_size=3).map(tuple),
)


@given(COMPONENTS, SHAPES, st.lists(SHAPES, max_size=2).map(tuple))
def test_components_of_any_content_raise_nothing(
    components: list[Json], shape: Shape, cards: tuple[Shape, ...]
) -> None:
    template = Template(name="a", language="en", components=components)
    for error in misfits(template, approved(shape, *cards)):
        assert isinstance(error, FieldError)
        assert error.field.startswith("template.components")
