"""The simulator's templates as translations, and what fits them."""

import json
import re
from pathlib import Path
from typing import Any

from notifier.domain.templates import (
    ButtonKind,
    Category,
    HeaderKind,
    Shape,
    TemplateStatus,
    Translation,
)

_FILE = Path(__file__).parents[1] / "local" / "blip" / "templates.json"
_BUTTONS = {
    "QUICK_REPLY": ButtonKind.QUICK_REPLY,
    "URL": ButtonKind.URL,
    "COPY_CODE": ButtonKind.COPY_CODE,
    "OTP": ButtonKind.OTP,
    "STATIC_URL": ButtonKind.STATIC,
    "PHONE_NUMBER": ButtonKind.STATIC,
}


def translations() -> dict[tuple[str, str], Translation]:
    """Return the simulator's templates by name and language."""
    entries: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        (entry["name"], entry["language"]): Translation(
            status=TemplateStatus(entry["status"]),
            category=Category(entry["category"]) if "category" in entry else None,
            shape=_shape(entry),
            cards=tuple(map(_shape, entry.get("cards", ()))),
        )
        for entry in entries
    }


def _shape(entry: dict[str, Any]) -> Shape:
    header, body = entry.get("header"), entry["body"]
    return Shape(
        header=HeaderKind[header] if header else None,
        header_length=_fixed(entry.get("header_text")),
        body=tuple(body) if isinstance(body, list) else body,
        body_length=_fixed(entry.get("text")),
        buttons=tuple(_BUTTONS.get(kind, ButtonKind.OTHER) for kind in entry.get("buttons", ())),
    )


def _fixed(text: str | None) -> int:
    return len(re.sub(r"{{\w+}}", "", text or ""))
