"""Writes events/schema and events/openapi.yaml from the models; `--check` only compares.

The models stay free of prose for it: a class's docstring and its `Attributes` become descriptions.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent.parent / "layers" / "notifier"))

import yaml
from aws_lambda_powertools.event_handler.openapi.models import APIKey, License, Server

from notifier.aws.event_bus import SOURCE
from notifier.aws.events import DETAIL_TYPE
from notifier.aws.template_events import DETAIL_TYPE as TEMPLATE_DETAIL_TYPE
from notifier.contract import problems, request
from notifier.domain.bots import NAME_PATTERN
from notifier.domain.failures import Reason
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED, Status
from notifier.domain.templates import Category, TemplateStatus
from notifier.entrypoints.get_notification import GetNotification
from notifier.use_cases.get_notification import Notifications

type Json = dict[str, Any]

_END = r"$(?!\n)"

EVENTS = Path(__file__).parent.parent / "events"
FOLDER = EVENTS / "schema"
OPENAPI = "openapi.yaml"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Samples that show the most of the request, for a reader of the schema in a viewer.
EXAMPLES = ("05-quick-reply.json", "04-document.json", "10-named-parameters.json")


def request_schema() -> Json:
    schema = request.NotificationRequest.model_json_schema()
    for model in (schema, *schema["$defs"].values()):
        _describe(model)
        _allow_null(model)
    header = {"$schema": DIALECT, "$id": "urn:blip-notifier:request"}
    examples = [json.loads((EVENTS / name).read_text(encoding="utf-8")) for name in EXAMPLES]
    document: Json = header | _ended(schema) | {"examples": examples}
    return document


def _describe(model: Json) -> None:
    """Spread a docstring over the model and its fields."""
    summary, _, attributes = cleandoc(model["description"]).partition("\n\nAttributes:\n")
    model["description"] = " ".join(summary.split())
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", attributes, re.MULTILINE)
    described = {name: " ".join((text[0].upper() + text[1:]).split()) for name, text in entries}
    if described.keys() != model["properties"].keys():
        undescribed = sorted(described.keys() ^ model["properties"].keys())
        raise SystemExit(f"{model['title']}: fields and `Attributes` differ: {undescribed}")
    for name, field in model["properties"].items():
        field.pop("title", None)
        field["description"] = described[name]


def _allow_null(model: Json) -> None:
    """An optional field may be null, which means left out."""
    for name, field in model["properties"].items():
        if name in model.get("required", ()) or {"type": "null"} in field.get("anyOf", ()):
            continue
        about = {"description": field.pop("description")}
        if "default" in field:
            about["default"] = field.pop("default")
        model["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}


def _ended(schema: Any) -> Any:
    """Return the schema with patterns that mean the same in Python's dialect.

    JSON Schema's dialect is ECMAScript's. There, unlike in Python's, `$` does not match before a
    last newline.
    """
    if isinstance(schema, list):
        return [_ended(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    ended = {name: _ended(entry) for name, entry in schema.items()}
    if isinstance(pattern := schema.get("pattern"), str):
        ended["pattern"] = pattern.replace("$", _END)
    if "patternProperties" in ended:
        named = ended["patternProperties"]
        ended["patternProperties"] = {name.replace("$", _END): named[name] for name in named}
    return ended


def text(description: str, **rules: Any) -> Json:
    return {"type": "string", "description": description, **rules}


def maybe(kind: str, description: str, **rules: Any) -> Json:
    return {"type": [kind, "null"], "description": description, **rules}


def status_event_schema() -> Json:
    published = [
        status for status in Status if status in {*SENT_OR_LATER, *UNDELIVERED, Status.CANCELLED}
    ]
    detail = {
        "type": "object",
        "title": "Detail",
        "description": "A change of status. Holds no phone number and no parameter.",
        "properties": {
            "event_id": text(
                "Names the change, however often it is published: drop what you have seen.",
                format="uuid",
            ),
            "id": text("The request's id.", pattern=request.ID_PATTERN),
            "bot": text("The request's bot.", pattern=NAME_PATTERN),
            "status": text(
                "Where the notification stands now; accepted and dispatched only if the stack"
                " publishes all receipts.",
                enum=published,
            ),
            "reason": maybe(
                "string",
                "Why it ended without delivery: the reason of its dead letter; else null.",
                enum=[*Reason, None],
            ),
            "generation": {
                "type": "integer",
                "minimum": 0,
                "description": (
                    "Which round of sending, one more with each redrive; 0 before the first."
                ),
            },
            "time": text("When, in UTC.", format="date-time"),
            "metadata": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "The request's.",
            },
            "correlation_id": maybe(
                "string", "The request's.", pattern=request.CORRELATION_PATTERN
            ),
            "category": maybe(
                "string",
                "How WhatsApp prices and limits its template; null where BLiP has not said.",
                enum=[*Category, None],
            ),
            "stack": text("The stack that sends: a test stage's events may come by the same bus."),
        },
        "if": {"properties": {"status": {"enum": [s for s in published if s in UNDELIVERED]}}},
        "then": {"properties": {"reason": {"type": "string"}}},
        "else": {"properties": {"reason": {"type": "null"}}},
    }
    detail["required"] = list(detail["properties"])
    return {
        "$schema": DIALECT,
        "$id": "urn:blip-notifier:status-event",
        "title": "StatusEvent",
        "description": (
            "A change of status as EventBridge hands it on. What EventBridge itself adds (id,"
            " account, region, time and the like) is left out here; it is described by AWS."
        ),
        "type": "object",
        "properties": {
            "source": {"const": SOURCE},
            "detail-type": {"const": DETAIL_TYPE},
            "detail": {"$ref": "#/$defs/Detail"},
        },
        "required": ["source", "detail-type", "detail"],
        "$defs": {"Detail": detail},
    }


def template_change_schema() -> Json:
    """Describe the event of a template that WhatsApp has approved, paused, rejected or moved."""
    detail = {
        "type": "object",
        "title": "Detail",
        "description": "A change of a template in one language.",
        "properties": {
            "event_id": text("Names the change: drop repetitions.", format="uuid"),
            "bot": text("Whose template it is.", pattern=NAME_PATTERN),
            "name": text("The template's name."),
            "language": text("The code of its translation, as in pt_BR."),
            "status": text("What WhatsApp says of it now.", enum=list(TemplateStatus)),
            "previous_status": maybe(
                "string",
                "What it said before; null for a template that is new.",
                enum=[*TemplateStatus, None],
            ),
            "category": maybe(
                "string", "Its category now; null where BLiP has not said.", enum=[*Category, None]
            ),
            "previous_category": maybe(
                "string", "Its category before; null where it is new.", enum=[*Category, None]
            ),
            "time": text("When BLiP was asked, in UTC.", format="date-time"),
            "stack": text("The stack that sends: a test stage's events may come by the same bus."),
        },
    }
    detail["required"] = list(cast("Json", detail["properties"]))
    return {
        "$schema": DIALECT,
        "$id": "urn:blip-notifier:template-change",
        "title": "TemplateChange",
        "description": "A change of a template as EventBridge passes it on.",
        "type": "object",
        "properties": {
            "source": {"const": SOURCE},
            "detail-type": {"const": TEMPLATE_DETAIL_TYPE},
            "detail": {"$ref": "#/$defs/Detail"},
        },
        "required": ["source", "detail-type", "detail"],
        "$defs": {"Detail": detail},
    }


def dead_letter_schema() -> Json:
    field = {
        "type": "object",
        "properties": {
            "field": text("Its path, as in template.body[1]; empty for the request as a whole."),
            "problem": text("What is wrong and what would be right, without the value."),
        },
        "required": ["field", "problem"],
    }
    failure = {
        "type": "object",
        "title": "Failure",
        "description": "What is known about it. Holds no phone number and no parameter.",
        "properties": {
            "detail": text("One sentence for a person."),
            "fields": {
                "type": "array",
                "maxItems": problems.MAX_FIELD_ERRORS,
                "items": field,
                "description": "For invalid and template_mismatch: the broken fields.",
            },
            "code": maybe("integer", "The code of BLiP or WhatsApp, or the HTTP status."),
            "template": maybe("string", "The template's name."),
            "phase": text(
                "How far it had come: contract, claim, template, look-up, send, settle or receipt."
            ),
            "attempts": {
                "type": "integer",
                "minimum": 0,
                "description": "How many times it was tried in this generation.",
            },
            "possibly_sent": {
                "type": "boolean",
                "description": "The recipient may have got it all the same.",
            },
            "redrives": {
                "type": "integer",
                "minimum": 0,
                "description": "How often it was put back on the requests queue.",
            },
        },
        "required": ["detail"],
    }
    return {
        "$schema": DIALECT,
        "$id": "urn:blip-notifier:dead-letter",
        "title": "DeadLetter",
        "description": (
            "The message attributes of a dead letter, name to string value. Its body is exactly"
            " what came in. A message that SQS itself moved here carries none of them."
        ),
        "type": "object",
        "properties": {
            "reason": text("Why; events/README.md says what to do.", enum=list(Reason)),
            "bot": text("The request's bot, where it is readable.", pattern=NAME_PATTERN),
            "notification_id": text(
                "The request's id, where it is readable.", pattern=request.ID_PATTERN
            ),
            "generation": text(
                "Which round of sending failed (type Number); none for what never had one.",
                pattern="^[1-9][0-9]*$",
            ),
            "failed_at": text("When, in UTC.", format="date-time"),
            "failure": text(
                "ASCII JSON of at most 4 KiB.",
                maxLength=4096,
                contentMediaType="application/json",
                contentSchema={"$ref": "#/$defs/Failure"},
            ),
        },
        "required": ["reason", "failed_at", "failure"],
        "$defs": {"Failure": failure},
    }


def openapi() -> Json:
    """Describe what producers may ask over HTTP: Powertools' resolver knows its own routes."""
    unused = cast("Any", None)
    resolver = GetNotification(Notifications(unused, unused)).resolver
    document: Json = json.loads(
        resolver.get_openapi_json_schema(
            title="BLiP notifier",
            version="1.0.0",
            description=(
                "Where is my notification? And taking it back. Sign requests with AWS Signature"
                " Version 4 for the service execute-api; README.md shows how."
            ),
            license_info=License(name="MIT"),
            servers=[
                Server(
                    url="https://{api}.execute-api.{region}.amazonaws.com",
                    description="The stack's output `NotificationsUrl`, without its path.",
                    variables={
                        "api": {"default": "api", "description": "AWS chooses it."},
                        "region": {
                            "default": "sa-east-1",
                            "description": "Where the stack is deployed.",
                        },
                    },
                )
            ],
            security_schemes={
                "iam": APIKey.model_validate(
                    {
                        "in": "header",
                        "name": "Authorization",
                        "description": "AWS Signature Version 4.",
                        "x-amazon-apigateway-authtype": "awsSigv4",
                    }
                )
            },
            security=[{"iam": []}],
        )
    )
    for path in document["paths"].values():
        for operation in path.values():
            del operation["responses"]["422"]  # Powertools' own; we answer 400
    models = document["components"]["schemas"]
    for name in [name for name in models if name.endswith("ValidationError")]:
        del models[name]
    for model in models.values():
        if "properties" in model:
            _describe(model)
    return document


def files() -> dict[str, str]:
    """Return every generated schema by its name, as it should be."""
    schemas = {
        "request.schema.json": request_schema(),
        "dead-letter.schema.json": dead_letter_schema(),
        "status-event.schema.json": status_event_schema(),
        "template-change.schema.json": template_change_schema(),
    }
    return {
        name: json.dumps(schema, ensure_ascii=False, indent=2) + "\n"
        for name, schema in schemas.items()
    }


def openapi_text() -> str:
    return yaml.safe_dump(openapi(), sort_keys=False, allow_unicode=True, width=100)


def drifted(folder: Path = FOLDER) -> Iterator[str]:
    """Name what in the folder, or beside it, is not what the models say."""
    expected = files()
    beside = folder.parent / OPENAPI
    if not beside.is_file() or beside.read_text(encoding="utf-8") != openapi_text():
        yield f"{beside}: is not what the models say; run `make schemas`"
    for name, text in expected.items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: is missing; run `make schemas`"
        elif path.read_text(encoding="utf-8") != text:
            yield f"{path}: is not what the models say; run `make schemas`"
    for path in sorted(folder.glob("*")):
        if path.name not in expected:
            yield f"{path}: nothing generates it, remove it"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schemas", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args(arguments).check:
        problems = list(drifted())
        sys.stderr.writelines(f"{problem}\n" for problem in problems)
        return 1 if problems else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    (FOLDER.parent / OPENAPI).write_text(openapi_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
