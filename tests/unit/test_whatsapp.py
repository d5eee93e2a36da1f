"""How the local console draws a template message, whatever is in it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.contract.parse import parse
from tests.local.blip.templates import Template, read
from tests.local.console import whatsapp
from tests.local.console.whatsapp import formatted
from tests.local.machine import ROOT

KNOWN = {template.name: template for template in read()}


def of_sample(name: str) -> whatsapp.Bubble:
    requested = parse((ROOT / "events" / name).read_text()).request.template
    return whatsapp.of_request(requested, KNOWN[requested.name])


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("*bold* and _slanted_", "<strong>bold</strong> and <em>slanted</em>"),
        ("~gone~ ```as typed```", "<s>gone</s> <code>as typed</code>"),
        ("*_both_*", "<strong><em>both</em></strong>"),
        ("2*3*4 and snake_case_name", "2*3*4 and snake_case_name"),
        ("* not bold *", "* not bold *"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("*<i>*", "<strong>&lt;i&gt;</strong>"),
        ("javascript:alert(1)", "javascript:alert(1)"),
    ],
)
def test_marks_become_html_and_everything_else_is_escaped(text: str, html: str) -> None:
    assert formatted(text) == html


def test_link_ends_before_its_sentence_does() -> None:
    html = formatted('see https://example.com/a?b="c. Then')
    assert 'href="https://example.com/a?b="' in html
    assert formatted("at https://example.com.").endswith("</a>.")


@given(st.text())
def test_no_text_becomes_a_tag_of_its_own(text: str) -> None:
    html = formatted(text)
    for tag in ("strong", "em", "s", "code", "a"):
        html = html.replace(f"</{tag}>", "").replace(f"<{tag}>", "")
    left = html.replace('<a href="', "").replace('" rel="noreferrer" target="_blank">', "")
    assert "<" not in left
    assert ">" not in left


def test_values_fill_the_text_by_position_and_by_name() -> None:
    assert of_sample("01-text.json").text == "Olá, Maria! O pedido 981 saiu para entrega."
    shown = of_sample("10-named-parameters.json").text
    assert shown == "Paulo, a sua conta vence em 10 de maio."
    shown = of_sample("11-currency-date-time.json").text
    assert shown == "Sofia, recebemos R$ 250,00 em 3 de maio, 9h12."


def test_header_text_is_filled_or_stands_as_it_is() -> None:
    content = {"type": "template", "template": {"components": [_header("984")]}}
    template = Template(name="t", language="pt_BR", header="TEXT", header_text="Pedido {{1}}")
    assert whatsapp.of_content(content, template).header == whatsapp.Header("text", "Pedido 984")
    fixed = Template(name="t", language="pt_BR", header_text="Novidades", text="Oi")
    assert whatsapp.of_content(content | {"template": {"name": "t"}}, fixed).header == (
        whatsapp.Header("text", "Novidades")
    )


def test_footer_and_the_words_on_buttons_are_the_templates() -> None:
    assert of_sample("01-text.json").footer == "Loja Exemplo"
    assert [button.label for button in of_sample("07-url-button.json").buttons] == [
        "Ligar",
        "Rastrear",
    ]


def test_template_is_drawn_with_its_variables() -> None:
    bubble = whatsapp.of_template(KNOWN["seasonal_offers"])
    assert bubble.text == "{{1}}, as ofertas da estação chegaram."
    assert [card.text for card in bubble.cards] == ["Casacos de inverno", "Botas de couro"]
    assert [card.header and card.header.kind for card in bubble.cards] == ["image", "image"]
    code = whatsapp.of_template(KNOWN["login_code"])
    assert [(button.kind, button.label) for button in code.buttons] == [
        ("copy_code", "Copiar código")
    ]
    assert code.footer == "Este código expira em 10 minutos."
    unknown = whatsapp.of_template(Template(name="t", language="pt_BR", body=["order"]))
    assert (unknown.text, bool(unknown.note)) == ("{{order}}", True)


def test_value_that_looks_like_a_placeholder_stays() -> None:
    content = {"type": "template", "template": {"components": [_body("{{2}}", "x")]}}
    template = Template(name="t", language="pt_BR", body=2, text="{{1}} {{2}}")
    assert whatsapp.of_content(content, template).text == "{{2}} x"


def _header(text: str) -> dict[str, Any]:
    return {"type": "header", "parameters": [{"type": "text", "text": text}]}


def _body(*values: str) -> dict[str, Any]:
    return {"type": "body", "parameters": [{"type": "text", "text": value} for value in values]}


@pytest.mark.parametrize(
    ("sample", "kind", "title", "detail"),
    [
        ("02-image.json", "image", "982.jpg", "https://example.com/pedidos/982.jpg"),
        ("03-video.json", "video", "montagem.mp4", "https://example.com/videos/montagem.mp4"),
        ("04-document.json", "document", "boleto-2041.pdf", "https://example.com/boletos/2041.pdf"),
        ("06-header-text.json", "text", "Pedido 984", ""),
    ],
)
def test_header_is_a_card_with_its_file(sample: str, kind: str, title: str, detail: str) -> None:
    header = of_sample(sample).header
    assert header
    assert (header.kind, header.title, header.detail) == (kind, title, detail)


def test_location_has_its_name_address_and_coordinates() -> None:
    header = of_sample("09-location.json").header
    assert header
    assert header.title == "Loja Savassi"
    assert "Rua Pernambuco" in header.detail
    assert "-19.9245" in header.detail


def test_buttons_are_the_templates_with_what_the_message_puts_in() -> None:
    assert [(b.kind, b.value) for b in of_sample("05-quick-reply.json").buttons] == [
        ("quick_reply", "CONFIRM"),
        ("quick_reply", "RESCHEDULE"),
    ]
    assert [(b.kind, b.value) for b in of_sample("07-url-button.json").buttons] == [
        ("phone_number", ""),
        ("url", "BR985123456"),
    ]
    [button] = of_sample("08-copy-code.json").buttons
    assert (button.label, button.value) == ("Copy code", "PRIMAVERA15")


def test_carousel_has_its_cards() -> None:
    cards = of_sample("12-components.json").cards
    assert [card.header and card.header.title for card in cards] == ["casaco.jpg", "bota.jpg"]
    assert [card.buttons[0].value for card in cards] == ["OFFER_0", "OFFER_1"]


def test_unknown_template_is_said_with_its_values() -> None:
    content = {"type": "template", "template": {"name": "lost", "components": [_body("a", "b")]}}
    bubble = whatsapp.of_content(content, None)
    assert bubble.text == "a · b"
    assert "lost" in bubble.note


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "parameters", "cards", "components", "index", "text", "image", "sub_type"]
            ),
            inner
            | st.sampled_from(
                ["header", "body", "button", "carousel", "image", "location", "text"]
            ),
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON, st.sampled_from([None, *KNOWN.values()]))
def test_any_content_can_be_drawn(components: Any, known: Template | None) -> None:
    for content in (components, {"type": "template", "template": {"components": components}}):
        bubble = whatsapp.of_content(content, known)
        assert isinstance(bubble.body, str)
