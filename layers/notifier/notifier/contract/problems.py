"""What is wrong with a body, in sentences for a producer: fields and rules, never values."""

import difflib
import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from notifier.contract.request import CORRELATION_PATTERN, ID_PATTERN, NotificationRequest
from notifier.contract.rules import TAG
from notifier.contract.template import (
    TEMPLATE_NAME_PATTERN,
    CopyCode,
    Currency,
    DateTime,
    HeaderDocument,
    HeaderImage,
    HeaderLocation,
    HeaderText,
    HeaderVideo,
    QuickReply,
    Template,
    UrlButton,
)
from notifier.domain.bots import NAME_PATTERN as BOT_PATTERN
from notifier.domain.failures import FieldError, Reason, Rejected

MAX_FIELD_ERRORS = 20


MAX_SUMMARISED_ERRORS = 3


class InvalidRequest(Rejected):
    """A body that is no valid request; the reason is `malformed` or `invalid`.

    Attributes:
        notification_id: the request's id, where it is readable and valid by its own rule.
        bot: the request's bot, where it is readable and valid.
        template: the template's name, where it is readable and valid.
        correlation_id: the request's, where it is readable and valid.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        fields: tuple[FieldError, ...] = (),
        request: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(reason, detail, fields=fields)
        self.notification_id = self.bot = self.template = self.correlation_id = None
        if request is not None:
            bot, template = request.get("bot"), request.get("template")
            name = template.get("name") if isinstance(template, dict) else None
            self.notification_id = _matching(ID_PATTERN, request.get("id"))
            self.bot = _matching(BOT_PATTERN, "default" if bot is None else bot)
            self.template = _matching(TEMPLATE_NAME_PATTERN, name)
            self.correlation_id = _matching(CORRELATION_PATTERN, request.get("correlation_id"))


def _matching(pattern: str, value: object) -> str | None:
    # fullmatch: in Python's dialect, unlike JSON Schema's, `$` also matches before a last newline.
    return value if isinstance(value, str) and re.fullmatch(pattern, value) else None


def malformed(detail: str, request: dict[str, Any] | None = None) -> InvalidRequest:
    """Return the error of a body that is no request at all."""
    return InvalidRequest(Reason.MALFORMED, detail, request=request)


def invalid(error: ValidationError, request: dict[str, Any]) -> InvalidRequest:
    """Return the error of a request that breaks the contract, with every broken field."""
    problems = error.errors(include_url=False, include_input=False)
    fields = tuple(map(_field_error, problems[:MAX_FIELD_ERRORS]))
    detail = summary(fields, len(problems))
    return InvalidRequest(Reason.INVALID, detail, fields=fields, request=request)


def summary(fields: tuple[FieldError, ...], count: int) -> str:
    """Return the first broken fields in a sentence; `count` is how many there are in all."""
    shown = "; ".join(
        f"{broken.field or 'the request'}: {broken.problem}"
        for broken in fields[:MAX_SUMMARISED_ERRORS]
    )
    more = count - MAX_SUMMARISED_ERRORS
    return f"{shown}; and {more} more" if more > 0 else shown


# pydantic's own errors that reach a producer; all others come from `says`.
_SENTENCES = {
    "missing": "is required",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entry",
    "string_type": "must be a text",
}


def _field_error(problem: ErrorDetails) -> FieldError:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return FieldError(_path(location), _unknown_field(location))
    sentence = _SENTENCES.get(problem["type"], problem["msg"]).format_map(problem.get("ctx", {}))
    return FieldError(_path(location), sentence)


def _unknown_field(location: tuple[int | str, ...]) -> str:
    owner = _MODELS[location[-2]] if len(location) > 1 else NotificationRequest
    close = difflib.get_close_matches(str(location[-1]), owner.model_fields, n=1)
    return f"unknown field; did you mean {close[0]}?" if close else "unknown field"


# What stands before an unknown field's name in an error's path: the model that does not know it.
_MODELS: dict[int | str, type[BaseModel]] = {
    "template": Template,
    f"{TAG}text": HeaderText,
    f"{TAG}image": HeaderImage,
    f"{TAG}video": HeaderVideo,
    f"{TAG}document": HeaderDocument,
    f"{TAG}location": HeaderLocation,
    f"{TAG}quick_reply": QuickReply,
    f"{TAG}url": UrlButton,
    f"{TAG}copy_code": CopyCode,
    f"{TAG}currency": Currency,
    f"{TAG}date_time": DateTime,
}


def _path(location: tuple[int | str, ...]) -> str:
    """Write an error's path as the producer would, without pydantic's own steps."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]" and not step.startswith(TAG):
            path += f".{_printable(step)}"
    return path.removeprefix(".")


def _printable(name: str) -> str:
    """Keep whatever a producer put in a name's place, a phone number perhaps, out of the logs."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", name)
    many_digits = re.search(r"([0-9][^0-9]*){5}", name)
    return name if plain and not many_digits else "?"
