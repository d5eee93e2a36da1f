"""The LIME envelopes that we write, as BLiP's documentation for WhatsApp notifications shows them.

Source: BLiP help centre, "Enviar notificações WhatsApp via API do BLiP", requests 1 to 6. Where we
differ from it on purpose: the parameter's `type` is never capitalised (its `"Type"` is a typo:
WhatsApp's keys are case-sensitive), and the message id is ours, so that receipts find the
notification.
"""

from typing import Any

from notifier.contract.template import (
    BodyValue,
    Button,
    CopyCode,
    Currency,
    DateTime,
    Header,
    HeaderDocument,
    HeaderImage,
    HeaderLocation,
    HeaderText,
    HeaderVideo,
    QuickReply,
    Template,
    UrlButton,
)

WHATSAPP_DOMAIN = "wa.gw.msging.net"
POSTMASTER = "postmaster@msging.net"
# How much of a list BLiP hands out at once.
PAGE = 100
TEMPLATES = "/message-templates"
TEMPLATES_ENRICHED = "/message-templates-enriched"

type Json = dict[str, Any]


def look_up(command_id: str, phone: str) -> Json:
    """Ask for the WhatsApp identity of a phone number in E.164.

    The `+` is needed, and sent as it is: without it BLiP calls every number registered.
    """
    return {
        "id": command_id,
        "to": f"postmaster@{WHATSAPP_DOMAIN}",
        "method": "get",
        "uri": f"lime://{WHATSAPP_DOMAIN}/accounts/{phone}",
    }


def history(command_id: str, message_id: str) -> Json:
    """Ask what BLiP has stored about a message. It keeps events for three days.

    Source: docs.blip.ai, chat history. The events lag by minutes.
    """
    return {
        "id": command_id,
        "to": POSTMASTER,
        "method": "get",
        "uri": f"/notifications?id={message_id}&$take={PAGE}",
    }


def templates(command_id: str, uri: str, skip: int, name: str | None = None) -> Json:
    """Ask for a page of the bot's message templates, or for those of one name.

    Source: BLiP help centre, article 39316925291671. Only a bot with a WhatsApp channel has any.

    Args:
        command_id: the command's.
        uri: of the list, plain or enriched.
        skip: how many templates the pages before had.
        name: the only one that is wanted; None for all.
    """
    wanted = "" if name is None else f"templateName={name}&"
    return {
        "id": command_id,
        "to": f"postmaster@{WHATSAPP_DOMAIN}",
        "method": "get",
        "uri": f"{uri}?{wanted}$skip={skip}&$take={PAGE}",
    }


def ping(command_id: str) -> Json:
    """Ask whether BLiP is there and knows the key. LIME's ping; it counts against nothing."""
    return {"id": command_id, "to": POSTMASTER, "method": "get", "uri": "/ping"}


def message(message_id: str, identity: str, template: Template, namespace: str | None) -> Json:
    """Send a template. `namespace` is the bot's, used where the template names none."""
    content: Json = {
        "name": template.name,
        "language": {"code": template.language, "policy": "deterministic"},
        "components": components(template),
    }
    if used := template.namespace or namespace:
        content["namespace"] = used
    return {
        "id": message_id,
        "to": identity,
        "type": "application/json",
        "content": {"type": "template", "template": content},
    }


def components(template: Template) -> list[Json]:
    """Return the template's values in WhatsApp's own form."""
    if template.components is not None:
        return template.components
    if template.otp is not None:
        return _one_time_code(template.otp)
    parts: list[Json] = []
    if template.header is not None:
        parts.append({"type": "header", "parameters": [_header(template.header)]})
    if template.body is not None:
        parts.append({"type": "body", "parameters": _body(template.body)})
    parts.extend(_button(position, button) for position, button in enumerate(template.buttons))
    return parts


def _one_time_code(code: str) -> list[Json]:
    """Return a code for the text and for the button, which WhatsApp calls a url button.

    Source: Meta's Cloud API, authentication templates.
    """
    value: Json = {"type": "text", "text": code}
    return [
        {"type": "body", "parameters": [value]},
        {"type": "button", "sub_type": "url", "index": 0, "parameters": [value]},
    ]


def _header(header: Header) -> Json:
    match header:
        case HeaderText(text=text):
            return {"type": "text", "text": text}
        case HeaderImage(link=link):
            return {"type": "image", "image": {"link": link}}
        case HeaderVideo(link=link):
            return {"type": "video", "video": {"link": link}}
        case HeaderDocument(link=link, filename=filename):
            return {"type": "document", "document": {"link": link, "filename": filename}}
        case HeaderLocation():
            # WhatsApp wants the coordinates as strings (Cloud API, template components).
            location = {
                "latitude": f"{header.latitude:.7f}",
                "longitude": f"{header.longitude:.7f}",
                "name": header.name,
                "address": header.address,
            }
            return {"type": "location", "location": location}


def _body(body: list[BodyValue] | dict[str, BodyValue]) -> list[Json]:
    if isinstance(body, list):
        return [_value(value) for value in body]
    return [{"parameter_name": name} | _value(value) for name, value in body.items()]


def _value(value: BodyValue) -> Json:
    match value:
        case Currency():
            currency = {
                "fallback_value": value.fallback_value,
                "code": value.code,
                "amount_1000": value.amount_1000,
            }
            return {"type": "currency", "currency": currency}
        case DateTime():
            return {"type": "date_time", "date_time": {"fallback_value": value.fallback_value}}
        case str():
            return {"type": "text", "text": value}


def _button(position: int, button: Button) -> Json:
    parameter: Json
    match button:
        case QuickReply(payload=payload):
            parameter = {"type": "payload", "payload": payload}
        case UrlButton(text=text):
            parameter = {"type": "text", "text": text}
        case CopyCode(coupon=coupon):
            parameter = {"type": "coupon_code", "coupon_code": coupon}
    return {
        "type": "button",
        "sub_type": button.type,
        "index": position if button.index is None else button.index,
        "parameters": [parameter],
    }
