"""Templates as BLiP lists them: the plain list, and the enriched one with components.

The components have the form of Meta's management API, in which texts hold their variables and each
of these has an example.
"""

import zlib
from datetime import UTC, datetime
from typing import Literal

from tests.local.blip.lime import Json
from tests.local.blip.templates import Button, Shape, Template

type OtpButton = Literal["URL", "OTP"]

_LINK = "https://example.com/"
_OTP_LINK = "https://www.whatsapp.com/otp/code/?otp_type=COPY_CODE&code=otp"
_LABELS: dict[Button, str] = {
    "QUICK_REPLY": "Responder",
    "URL": "Abrir",
    "STATIC_URL": "Abrir",
    "COPY_CODE": "Copiar código",
    "OTP": "Copiar código",
    "PHONE_NUMBER": "Ligar",
    "FLOW": "Começar",
    "CATALOG": "Ver catálogo",
    "MPM": "Ver itens",
}


def plain(template: Template) -> Json:
    """Return a template as `/message-templates` lists it."""
    return {
        "id": _id(template),
        "name": template.name,
        "category": template.category,
        "language": template.language,
        "status": template.status,
    }


def enriched(template: Template, updated_at: float, otp: OtpButton) -> Json:
    """Return a template as `/message-templates-enriched` lists it.

    Args:
        template: the template.
        updated_at: when it was changed last, in epoch seconds.
        otp: what the button that copies a one-time code is called.
    """
    is_rejected = template.status == "REJECTED"
    listed = plain(template) | {
        "previous_category": template.previous_category,
        "rejected_reason": template.rejected_reason
        or ("INVALID_FORMAT" if is_rejected else "NONE"),
        "last_updated_time": datetime.fromtimestamp(updated_at, UTC).strftime(
            "%Y-%m-%dT%H:%M:%S%z"
        ),
        "parameter_format": "NAMED" if isinstance(template.body, list) else "POSITIONAL",
        "components": _components(template, otp),
    }
    if template.ttl_seconds is not None:
        listed["message_send_ttl_seconds"] = template.ttl_seconds
    return listed


def _id(template: Template) -> str:
    return str(10**15 + zlib.crc32(f"{template.name}/{template.language}".encode()))


def _components(template: Template, otp: OtpButton) -> list[Json]:
    parts = _parts(template, otp)
    if template.footer is not None:
        # A footer stands between the body and the buttons.
        parts.insert(_place_of_footer(parts), {"type": "FOOTER", "text": template.footer})
    if template.cards:
        cards = [{"components": _parts(card, otp)} for card in template.cards]
        parts.append({"type": "CAROUSEL", "cards": cards})
    return parts + template.further


def _place_of_footer(parts: list[Json]) -> int:
    return len(parts) - int(parts[-1]["type"] == "BUTTONS")


def _parts(shape: Shape, otp: OtpButton) -> list[Json]:
    parts: list[Json] = []
    if shape.header_text is not None:
        header: Json = {"type": "HEADER", "format": "TEXT", "text": shape.header_text}
        if shape.header is not None:
            header["example"] = {"header_text": ["exemplo"]}
        parts.append(header)
    elif shape.header is not None:
        header = {"type": "HEADER", "format": shape.header}
        if shape.header != "LOCATION":
            header["example"] = {"header_handle": [f"{_LINK}{shape.header.lower()}"]}
        parts.append(header)
    if isinstance(shape, Template) or shape.text is not None or shape.body:
        parts.append(_body(shape))
    if shape.buttons:
        labels = dict(enumerate(shape.labels))
        buttons = [
            _button(kind, labels.get(index, _LABELS[kind]), otp)
            for index, kind in enumerate(shape.buttons)
        ]
        parts.append({"type": "BUTTONS", "buttons": buttons})
    return parts


def _body(shape: Shape) -> Json:
    if isinstance(shape.body, list):
        names = shape.body
        examples: Json = {
            "body_text_named_params": [{"param_name": name, "example": "exemplo"} for name in names]
        }
    else:
        names = [str(position) for position in range(1, shape.body + 1)]
        examples = {"body_text": [["exemplo"] * len(names)]}
    text = shape.text if shape.text is not None else " ".join(f"{{{{{name}}}}}" for name in names)
    body: Json = {"type": "BODY", "text": text}
    return body | {"example": examples} if names else body


def _button(kind: Button, label: str, otp: OtpButton) -> Json:
    match kind:
        case "URL":
            url = {"url": f"{_LINK}{{{{1}}}}", "example": [f"{_LINK}exemplo"]}
            return {"type": "URL", "text": label} | url
        case "STATIC_URL":
            return {"type": "URL", "text": label, "url": _LINK}
        case "OTP" if otp == "OTP":
            return {"type": "OTP", "otp_type": "COPY_CODE", "text": label}
        case "OTP":
            url = {"url": f"{_OTP_LINK}{{{{1}}}}", "example": [f"{_OTP_LINK}123456"]}
            return {"type": "URL", "text": label} | url
        case "COPY_CODE":
            return {"type": kind, "text": label, "example": ["EXEMPLO"]}
        case "PHONE_NUMBER":
            return {"type": kind, "text": label, "phone_number": "+553133334444"}
        case "FLOW":
            return {"type": kind, "text": label, "flow_id": "1", "flow_action": "NAVIGATE"}
        case "QUICK_REPLY" | "CATALOG" | "MPM":
            return {"type": kind, "text": label}
