"""What is read of the entries with which BLiP lists a bot's templates."""

from typing import Any

import pytest

from notifier.blip.templates import read
from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    RegisteredTemplate,
    Shape,
    TemplateStatus,
    Translation,
)

type Json = dict[str, Any]

ASKED_AT = 1_800_000_000.0
BODY = {"type": "BODY", "text": "Olá, {{1}}! O pedido {{2}} saiu."}


def entry(*components: Any, **changes: Any) -> Json:
    """Return an entry of the enriched list, with these components beside a body."""
    return {
        "id": "8123456789",
        "name": "order_shipped",
        "category": "UTILITY",
        "previous_category": None,
        "status": "APPROVED",
        "rejected_reason": "NONE",
        "language": "pt_BR",
        "last_updated_time": "2026-10-01T12:00:00+0000",
        "components": list(components),
    } | changes


def translation(*components: Any, **changes: Any) -> Translation:
    listed = read([entry(*components, **changes)], ASKED_AT)
    return listed.templates["order_shipped"].translations["pt_BR"]


def header(**members: Any) -> Json:
    return {"type": "HEADER", **members}


def buttons(*entries: Any) -> Json:
    return {"type": "BUTTONS", "buttons": list(entries)}


def carousel(*cards: Any) -> Json:
    return {"type": "CAROUSEL", "cards": [{"components": card} for card in cards]}


def test_entry_is_read() -> None:
    listed = read([entry(BODY)], ASKED_AT)
    assert listed.unreadable == 0
    assert listed.templates == {
        "order_shipped": RegisteredTemplate(
            "order_shipped",
            ASKED_AT,
            {
                "pt_BR": Translation(
                    TemplateStatus.APPROVED,
                    category=Category.UTILITY,
                    previous_category=None,
                    shape=Shape(body=2, body_length=len("Olá, ! O pedido  saiu.")),
                )
            },
        )
    }


def test_template_has_a_translation_for_each_entry_of_its_name() -> None:
    entries = [entry(BODY), entry(BODY, language="en"), entry(BODY, name="other")]
    templates = read(entries, ASKED_AT).templates
    assert set(templates) == {"order_shipped", "other"}
    assert set(templates["order_shipped"].translations) == {"pt_BR", "en"}


# --- Components -----------------------------------------------------------------------------------

SHAPES: dict[str, tuple[list[Json], Shape]] = {
    "a body without variables": ([{"type": "BODY", "text": "Olá!"}], Shape(body_length=4)),
    "variables with spaces": (
        [{"type": "BODY", "text": "{{ 1 }} {{2 }}"}],
        Shape(body=2, body_length=1),
    ),
    "a variable that comes twice": (
        [{"type": "BODY", "text": "{{1}} {{2}} {{1}}"}],
        Shape(body=2, body_length=2),
    ),
    "ten variables": (
        [{"type": "BODY", "text": "".join(f"{{{{{n}}}}}" for n in range(10, 0, -1))}],
        Shape(body=10),
    ),
    "variables with names": (
        [{"type": "BODY", "text": "{{customer}}, {{due_date}}"}],
        Shape(body=("customer", "due_date"), body_length=2),
    ),
    "a footer": ([BODY, {"type": "FOOTER", "text": "Loja"}], Shape(body=2, body_length=22)),
    "types in small letters": ([{"type": "body", "text": "{{1}}"}], Shape(body=1)),
    "a header of fixed text": ([header(format="TEXT", text="Pedido")], Shape(header_length=6)),
    "a header with a variable": (
        [header(format="TEXT", text="Pedido {{1}}")],
        Shape(HeaderKind.TEXT, header_length=7),
    ),
    "a header with a named variable": (
        [header(format="text", text="{{order}}")],
        Shape(HeaderKind.TEXT),
    ),
    "an image": ([header(format="IMAGE")], Shape(HeaderKind.IMAGE)),
    "a video": ([header(format="VIDEO")], Shape(HeaderKind.VIDEO)),
    "a document": ([header(format="DOCUMENT")], Shape(HeaderKind.DOCUMENT)),
    "a location": ([header(format="LOCATION")], Shape(HeaderKind.LOCATION)),
    "buttons of every type": (
        [
            buttons(
                {"type": "QUICK_REPLY", "text": "Sim"},
                {"type": "URL", "text": "Ver", "url": "https://example.com/{{1}}"},
                {"type": "URL", "text": "Site", "url": "https://example.com/"},
                {"type": "PHONE_NUMBER", "text": "Ligar", "phone_number": "+553130000000"},
                {"type": "COPY_CODE", "example": ["A"]},
                {"type": "OTP", "otp_type": "COPY_CODE"},
                {"type": "FLOW", "flow_id": "1"},
                {"type": "CATALOG", "text": "Ver"},
                {"type": "MPM", "text": "Ver"},
                {"type": "VOICE_CALL", "text": "Ligar"},
                {"type": "URL", "text": "Ver"},
                {"text": "Ver"},
                {"type": 7},
            )
        ],
        Shape(
            buttons=(
                ButtonKind.QUICK_REPLY,
                ButtonKind.URL,
                ButtonKind.STATIC,
                ButtonKind.STATIC,
                ButtonKind.COPY_CODE,
                ButtonKind.OTP,
                *[ButtonKind.OTHER] * 7,
            )
        ),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_components_are_read(name: str) -> None:
    components, shape = SHAPES[name]
    assert translation(*components).shape == shape
    assert translation(*components).is_understood


def test_cards_of_a_carousel_are_read_in_order() -> None:
    first = [header(format="IMAGE"), {"type": "BODY", "text": "{{1}}"}]
    second = [header(format="VIDEO"), buttons({"type": "QUICK_REPLY"})]
    found = translation(BODY, carousel(first, second))
    assert found.shape.body == 2
    assert found.cards == (
        Shape(HeaderKind.IMAGE, body=1),
        Shape(HeaderKind.VIDEO, buttons=(ButtonKind.QUICK_REPLY,)),
    )


@pytest.mark.parametrize("text", [None, "*{{1}}* é o seu código."])
@pytest.mark.parametrize(
    ("button", "kind"),
    [
        ({"type": "OTP", "otp_type": "ONE_TAP"}, ButtonKind.OTP),
        ({"type": "COPY_CODE"}, ButtonKind.OTP),
        (
            {
                "type": "URL",
                "url": "https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE&code=otp{{1}}",
            },
            ButtonKind.URL,
        ),
    ],
)
def test_authentication_template_takes_its_code_twice(
    text: str | None, button: Json, kind: ButtonKind
) -> None:
    body = {"type": "BODY", "add_security_recommendation": True, "text": text}
    footer = {"type": "FOOTER", "code_expiration_minutes": 10}
    found = translation(body, footer, buttons(button), category="AUTHENTICATION")
    assert found.is_understood
    assert (found.shape.body, found.shape.buttons) == (1, (kind,))


@pytest.mark.parametrize(
    ("said", "text", "is_understood"),
    [
        ("POSITIONAL", "{{1}}", True),
        ("NAMED", "{{customer}}", True),
        ("named", "{{customer}}", True),
        ("NAMED", "no variable", True),
        ("POSITIONAL", "no variable", True),
        ("NAMED", "{{1}}", False),
        ("POSITIONAL", "{{customer}}", False),
        ("OTHER", "{{1}}", True),
        (7, "{{customer}}", True),
    ],
)
def test_format_of_the_variables_must_agree_with_the_text(
    said: object, text: str, is_understood: bool
) -> None:
    found = translation({"type": "BODY", "text": text}, parameter_format=said)
    assert found.is_understood is is_understood


NOT_UNDERSTOOD: dict[str, Any] = {
    "no list": None,
    "an object": {},
    "entries that are no objects": ["BODY"],
    "an unknown component": [BODY, {"type": "LIMITED_TIME_OFFER", "limited_time_offer": {}}],
    "a component without a type": [BODY, {"text": "a"}],
    "a component whose type is no text": [BODY, {"type": ["BODY"]}],
    "two bodies": [BODY, BODY],
    "a header without a format": [header(text="a")],
    "a header of an unknown format": [header(format="PRODUCT")],
    "a header whose format is no text": [header(format=[])],
    "a header without its text": [header(format="TEXT")],
    "a header with two variables": [header(format="TEXT", text="{{1}} {{2}}")],
    "a body without a text": [{"type": "BODY"}],
    "a body whose text is no text": [{"type": "BODY", "text": {}}],
    "a body that is far too long": [{"type": "BODY", "text": "x" * 5000}],
    "a position left out": [{"type": "BODY", "text": "{{1}} {{3}}"}],
    "a position too high to be one": [{"type": "BODY", "text": "{{" + "9" * 60 + "}}"}],
    "positions and names": [{"type": "BODY", "text": "{{1}} {{customer}}"}],
    "a variable of other characters": [{"type": "BODY", "text": "{{nome-do-cliente}}"}],
    "a variable that does not end": [{"type": "BODY", "text": "{{1"}],
    "buttons that are no list": [{"type": "BUTTONS", "buttons": {}}],
    "buttons that are no objects": [buttons("URL")],
    "more buttons than there can be": [buttons(*[{"type": "URL"}] * 21)],
    "a carousel without cards": [carousel()],
    "a carousel whose cards are no list": [{"type": "CAROUSEL", "cards": 2}],
    "a card without components": [{"type": "CAROUSEL", "cards": [{}]}],
    "a carousel in a carousel": [carousel([carousel([BODY])])],
}


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_translation_with_an_odd_component_is_not_understood(name: str) -> None:
    found = translation(components=NOT_UNDERSTOOD[name])
    assert not found.is_understood
    assert (found.shape, found.cards) == (Shape(), ())
    assert found.status is TemplateStatus.APPROVED
    assert found.category is Category.UTILITY


def test_plain_list_has_no_components_to_understand() -> None:
    plain = {"name": "order_shipped", "language": "pt_BR", "status": "PAUSED"}
    (template,) = read([plain], ASKED_AT).templates.values()
    found = template.translations["pt_BR"]
    assert found == Translation(TemplateStatus.PAUSED, is_understood=False)


# --- What else an entry says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "status"),
    [
        *((status.value, status) for status in TemplateStatus),
        ("approved", TemplateStatus.APPROVED),
        ("IN_APPEAL", TemplateStatus.OTHER),
        ("PENDING_DELETION", TemplateStatus.OTHER),
        ("LIMIT_EXCEEDED", TemplateStatus.OTHER),
        ("", TemplateStatus.OTHER),
        (None, TemplateStatus.OTHER),
        (["APPROVED"], TemplateStatus.OTHER),
    ],
)
def test_status_is_one_of_those_known(said: object, status: TemplateStatus) -> None:
    assert translation(BODY, status=said).status is status


@pytest.mark.parametrize(
    ("said", "category"),
    [
        *((category.value, category) for category in Category),
        ("marketing", Category.MARKETING),
        ("ACCOUNT_UPDATE", None),
        ("", None),
        (None, None),
        ({}, None),
    ],
)
def test_category_is_one_of_those_known(said: object, category: Category | None) -> None:
    found = translation(BODY, category=said, previous_category=said)
    assert (found.category, found.previous_category) == (category, category)


@pytest.mark.parametrize(
    ("members", "seconds"),
    [
        ({"message_send_ttl_seconds": 600}, 600),
        ({"ttl": 43_200}, 43_200),
        ({"message_send_ttl_seconds": -1}, None),
        ({"message_send_ttl_seconds": 0}, None),
        ({"message_send_ttl_seconds": "600"}, None),
        ({"message_send_ttl_seconds": True}, None),
        ({"message_send_ttl_seconds": 10**30}, None),
        ({}, None),
    ],
)
def test_time_to_live_is_read_if_it_is_there(members: Json, seconds: int | None) -> None:
    assert translation(BODY, **members).ttl_seconds == seconds


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "order_shipped",
        [],
        {},
        entry(BODY, name=None),
        entry(BODY, name=""),
        entry(BODY, name="Order Shipped"),
        entry(BODY, name="order_shipped\n"),
        entry(BODY, name=["order_shipped"]),
        entry(BODY, name="x" * 513),
    ],
)
def test_entry_without_a_readable_name_is_left_out_and_counted(odd: object) -> None:
    listed = read([odd, entry(BODY)], ASKED_AT)
    assert list(listed.templates) == ["order_shipped"]
    assert listed.unreadable == 1


@pytest.mark.parametrize("language", [None, "", "portuguese", "pt_BR\n", 7, []])
def test_name_with_an_unreadable_language_is_left_out_as_a_whole(language: object) -> None:
    """Otherwise a request in that language would be refused as one that does not exist."""
    listed = read([entry(BODY), entry(BODY, language=language), entry(BODY, name="b")], ASKED_AT)
    assert list(listed.templates) == ["b"]
    assert listed.unreadable == 1


def test_language_may_be_written_with_a_hyphen() -> None:
    listed = read([entry(BODY, language="pt-BR")], ASKED_AT)
    assert list(listed.templates["order_shipped"].translations) == ["pt_BR"]


def test_same_entry_twice_is_one_translation() -> None:
    assert read([entry(BODY)] * 2, ASKED_AT) == read([entry(BODY)], ASKED_AT)


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_entries_for_a_translation_the_approved_one_counts(*, reverse: bool) -> None:
    entries = [entry(BODY, status="REJECTED"), entry(header(format="IMAGE"))]
    listed = read(entries[::-1] if reverse else entries, ASKED_AT)
    found = listed.templates["order_shipped"].translations["pt_BR"]
    assert found.status is TemplateStatus.APPROVED
    assert not found.is_understood
