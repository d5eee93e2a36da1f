"""events/ against the code: samples, schemas, AsyncAPI and the producers' README."""

import copy
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.validators import validator_for
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import BaseModel

from notifier.aws.events import detail
from notifier.contract import request
from notifier.contract import template as parts
from notifier.contract.parse import _unwrapped as unwrapped_body
from notifier.contract.parse import parse
from notifier.contract.problems import InvalidRequest
from notifier.contract.request import NotificationRequest
from notifier.contract.rules import Strict
from notifier.domain.failures import Reason
from notifier.domain.notification import ledger_key
from notifier.domain.status import Status
from notifier.domain.status_events import StatusEvent
from tests import schemas

type Json = dict[str, Any]

EVENTS = schemas.EVENTS
ASYNCAPI_SCHEMA = Path(__file__).parent / "asyncapi" / "3.0.0.json"
SAMPLES = {path.name: path.read_text(encoding="utf-8") for path in sorted(EVENTS.glob("*.json"))}
# The others are valid requests; what became of them is seen on the local stack.
UNUSABLE = {"40-malformed.json": Reason.MALFORMED, "41-invalid.json": Reason.INVALID}
USABLE = sorted(SAMPLES.keys() - UNUSABLE.keys())
WRAPPED = {"20-sns.json", "21-eventbridge.json", "22-cloudevents.json"}


def schema(name: str) -> Json:
    content: Json = json.loads((schemas.FOLDER / name).read_text(encoding="utf-8"))
    return content


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name), format_checker=FormatChecker())


REQUEST_VALIDATOR = validator("request.schema.json")


# --- Schemas --------------------------------------------------------------------------------------


def test_schemas_are_generated_from_the_models() -> None:
    assert list(schemas.drifted()) == []


def test_drifted_schema_is_named_and_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "schema"
    monkeypatch.setattr(schemas, "FOLDER", folder)
    monkeypatch.setattr(schemas.drifted, "__defaults__", (folder,))
    assert schemas.main(["--check"]) == 1
    assert schemas.main([]) == 0
    assert schemas.main(["--check"]) == 0
    (folder / "request.schema.json").write_text("{}")
    (folder / "old.schema.json").write_text("{}")
    (tmp_path / "openapi.yaml").write_text("{}")
    capsys.readouterr()
    assert schemas.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'openapi.yaml'}: is not what the models say; run `make schemas`",
        f"{folder / 'request.schema.json'}: is not what the models say; run `make schemas`",
        f"{folder / 'old.schema.json'}: nothing generates it, remove it",
    ]


@pytest.mark.parametrize("name", sorted(schemas.files()))
def test_schemas_are_valid_json_schema_2020_12(name: str) -> None:
    content = schema(name)
    Draft202012Validator.check_schema(content)
    assert content["$schema"] == schemas.DIALECT
    assert content["$id"].startswith("urn:blip-notifier:")
    assert "\\u0000" not in json.dumps(content)


def test_request_schema_describes_every_field() -> None:
    content = schema("request.schema.json")
    for model in (content, *content["$defs"].values()):
        assert model["description"]
        assert all(field["description"] for field in model["properties"].values())


def test_examples_in_the_request_schema_are_valid() -> None:
    content = schema("request.schema.json")
    for example in content["examples"]:
        REQUEST_VALIDATOR.validate(example)


# --- Samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", USABLE)
def test_valid_samples_parse_and_match_the_schema(name: str) -> None:
    unwrapped = unwrapped_body(SAMPLES[name])
    REQUEST_VALIDATOR.validate(unwrapped)
    assert (unwrapped != json.loads(SAMPLES[name])) == (name in WRAPPED)
    parsed = parse(SAMPLES[name]).request
    assert parsed.to.startswith("+5531900")  # no subscriber has such a number


@pytest.mark.parametrize(("name", "reason"), UNUSABLE.items())
def test_invalid_samples_are_refused(name: str, reason: Reason) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(SAMPLES[name])
    assert refused.value.reason is reason


def test_invalid_sample_breaks_several_fields_and_the_schema() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(SAMPLES["41-invalid.json"])
    assert [error.field for error in refused.value.fields] == [
        "to",
        "template.name",
        "template.language",
        "template.header.link",
        "template.body[1]",
        "templte",
    ]
    assert not REQUEST_VALIDATOR.is_valid(json.loads(SAMPLES["41-invalid.json"]))


def test_samples_that_share_an_id_show_repetition_and_conflict() -> None:
    first, again, other = (
        parse(SAMPLES[name])
        for name in ("01-text.json", "30-duplicate.json", "43-id-conflict.json")
    )
    assert first == again
    assert first.request.id == other.request.id
    assert first.content_hash != other.content_hash
    ids = [parse(SAMPLES[name]).request.id for name in USABLE]
    assert len(set(ids)) == len(ids) - 2


def test_only_the_expired_sample_has_a_date_and_it_is_past() -> None:
    dates = {name: parse(SAMPLES[name]).request.valid_until for name in USABLE}
    dated = {name: date for name, date in dates.items() if date is not None}
    assert list(dated) == ["44-expired.json"]
    assert dated["44-expired.json"] < datetime.now(UTC)


def test_samples_show_every_kind_of_header_value_and_button() -> None:
    templates = [parse(SAMPLES[name]).request.template for name in USABLE]
    headers = {type(template.header) for template in templates if template.header}
    buttons = {type(button) for template in templates for button in template.buttons}
    bodies = [template.body for template in templates if template.body]
    values = {type(value) for body in bodies if isinstance(body, list) for value in body}
    assert headers == {
        parts.HeaderText,
        parts.HeaderImage,
        parts.HeaderVideo,
        parts.HeaderDocument,
        parts.HeaderLocation,
    }
    assert buttons == {parts.QuickReply, parts.UrlButton, parts.CopyCode}
    assert values == {str, parts.Currency, parts.DateTime}
    assert any(isinstance(body, dict) for body in bodies)
    assert any(template.components for template in templates)
    assert any(template.otp for template in templates)


# --- The schema is never stricter than parse ------------------------------------------------------

SCHEMA_CASES: list[Json] = [
    {"id": "a", "to": " (+55) (0)31 99999\u20118888 ", "template": {"name": "a", "language": "en"}},
    {
        "id": "a",
        "to": "+5531999998888",
        "bot": None,
        "valid_until": "2031-11-22t18:00:00.123z",
        "if_unknown": None,
        "metadata": None,
        "template": {
            "name": "a",
            "language": "es_419",
            "namespace": None,
            "header": {"type": "image", "link": "HTTP://example.com"},
            "body": {"a": "x    y", "b": {"type": "date_time", "fallback_value": "\u2705"}},
            "buttons": [{"type": "quick_reply", "payload": "a\nb", "index": None}],
            "components": None,
            "otp": None,
        },
    },
    {
        "id": "a",
        "to": "+5531999998888",
        "template": {"name": "a", "language": "en", "otp": "a1B2", "body": None, "buttons": []},
    },
]


@pytest.mark.parametrize("content", SCHEMA_CASES, ids=["phone number", "the rest", "one-time code"])
def test_request_that_parses_matches_the_schema(content: Json) -> None:
    parse(json.dumps(content))
    REQUEST_VALIDATOR.validate(content)


TEXTS = st.text() | st.text(" \t\n\u00a0-().:+0123456789aZ_", max_size=20)


@given(TEXTS, st.sampled_from(["id", "to", "bot", "valid_until", "text", "payload", "link"]))
def test_any_text_that_parses_matches_the_schema(text: str, place: str) -> None:
    content = copy.deepcopy(SCHEMA_CASES[0])
    match place:
        case "text":
            content["template"]["body"] = [text]
        case "payload":
            content["template"]["buttons"] = [{"type": "quick_reply", "payload": text}]
        case "link":
            content["template"]["header"] = {"type": "image", "link": f"http://{text}"}
        case _:
            content[place] = text
    try:
        parse(json.dumps(content))
    except InvalidRequest:
        return
    REQUEST_VALIDATOR.validate(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("id",), "a/b"),
        (("to",), "5531999998888"),
        (("to",), "+55 31 99999.8888"),
        (("valid_until",), "2031-11-22"),
        (("valid_until",), "2031-11-22T18:00:00"),
        (("if_unknown",), "retry"),
        (("metadata",), {"a": 1}),
        (("priority",), 1),
        (("template", "name"), "Order"),
        (("template", "language"), "pt-BR"),
        (("template", "header"), {"type": "audio", "link": "https://example.com"}),
        (("template", "header"), {"type": "image", "link": "ftp://example.com"}),
        (("template", "header"), {"type": "document", "link": "https://example.com"}),
        (("template", "body"), [""]),
        (("template", "body"), [" "]),
        (("template", "body"), ["a\nb"]),
        (("template", "body"), ["a\tb"]),
        (("template", "body"), ["a     b"]),
        (("template", "body"), [1]),
        (("template", "body"), {"Name": "a"}),
        (("template", "buttons"), [{"type": "quick_reply", "payload": "x", "index": 10}]),
        (("template", "buttons"), [{"type": "copy_code", "coupon": "x" * 16}]),
        (("template", "buttons"), [{"type": "url", "text": "x"}] * 11),
        (("template", "components"), [{}]),
        (("template", "components"), []),
        (("template", "otp"), "123456"),
        (("template",), {"name": "a", "language": "en", "otp": "123"}),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_schema_refuses_what_parse_refuses(path: tuple[str, ...], value: object) -> None:
    content = copy.deepcopy(json.loads(SAMPLES["01-text.json"]))
    target = content
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(InvalidRequest):
        parse(json.dumps(content))
    assert not REQUEST_VALIDATOR.is_valid(content)


# --- Dead letters ---------------------------------------------------------------------------------

DEAD_LETTER = {
    "reason": "invalid",
    "bot": "default",
    "notification_id": "order-981",
    "generation": "1",
    "failed_at": "2026-03-02T12:00:00Z",
    "failure": '{"detail": "template.body[0]: must not be empty"}',
}


def test_dead_letter_matches_its_schema() -> None:
    checked = validator("dead-letter.schema.json")
    checked.validate(DEAD_LETTER)
    assert not checked.is_valid(DEAD_LETTER | {"reason": "unlucky"})
    assert not checked.is_valid(DEAD_LETTER | {"generation": 1})
    assert not checked.is_valid(DEAD_LETTER | {"failure": "x" * 4097})
    failure = Draft202012Validator(
        {"$ref": "#/$defs/Failure", "$defs": schema("dead-letter.schema.json")["$defs"]}
    )
    failure.validate({"detail": "a", "fields": [{"field": "to", "problem": "b"}], "code": None})
    assert not failure.is_valid({"fields": []})


# --- Status events --------------------------------------------------------------------------------

EVENT_VALIDATOR = validator("status-event.schema.json")
EVENT: Json = {
    "event_id": "0f5f3f0c-7d0e-5f3b-9d0a-3f1f6f0f2a11",
    "id": "order-981",
    "bot": "default",
    "status": "received",
    "reason": None,
    "generation": 1,
    "time": "2026-11-22T18:00:05.123+00:00",
    "metadata": {},
    "correlation_id": None,
    "category": None,
    "stack": "blip-notifier",
}


def event(**changes: object) -> Json:
    envelope = {"source": "blip-notifier", "detail-type": "Notification Status Changed"}
    return envelope | {"detail": EVENT | changes}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("reason", [None, *Reason])
@pytest.mark.parametrize("generation", [0, 7])
def test_status_event_matches_its_schema(
    status: Status, reason: Reason | None, generation: int
) -> None:
    key = ledger_key("default", "order-981")
    status_event = StatusEvent(
        key, "order-981", "default", status, generation, 1.5, reason, {"a": "b"}
    )
    ended = status in {"failed", "rejected", "expired"}
    inward = status in {"claimed", "sending", "retrying", "unknown", "waiting"}
    assert EVENT_VALIDATOR.is_valid(event(**detail(status_event))) == (
        not inward and ended == (reason is not None)
    )


def test_invalid_status_event_is_refused_by_its_schema() -> None:
    EVENT_VALIDATOR.validate(event())
    EVENT_VALIDATOR.validate({"version": "0", "account": "1", "id": "2"} | event(status="sent"))
    for name in EVENT:
        without = {key: value for key, value in EVENT.items() if key != name}
        assert not EVENT_VALIDATOR.is_valid(event() | {"detail": without})
    for change in (
        {"event_id": "1"},
        {"id": "a/b"},
        {"status": "exploded"},
        {"status": "failed"},
        {"reason": "unlucky"},
        {"generation": -1},
        {"generation": "1"},
        {"time": 5},
        {"metadata": {"a": 1}},
        {"correlation_id": "two words"},
    ):
        assert not EVENT_VALIDATOR.is_valid(event(**change))
    assert not EVENT_VALIDATOR.is_valid(event() | {"source": "somebody"})


# --- AsyncAPI -------------------------------------------------------------------------------------


def asyncapi() -> Json:
    content: Json = yaml.safe_load((EVENTS / "asyncapi.yaml").read_text(encoding="utf-8"))
    return content


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        for entry in value.values():
            yield from references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from references(entry)


def test_asyncapi_document_matches_its_published_schema() -> None:
    published = json.loads(ASYNCAPI_SCHEMA.read_text(encoding="utf-8"))
    checked = validator_for(published)(published)
    assert [error.message for error in checked.iter_errors(asyncapi())] == []
    wrong = asyncapi() | {"channels": {"requests": {"adress": None}}}
    assert not checked.is_valid(wrong)


def test_asyncapi_references_exist() -> None:
    document = asyncapi()
    found = set(references(document))
    assert {f"./schema/{name}" for name in schemas.files()} <= found
    for reference in found:
        path, _, pointer = reference.partition("#")
        target: Any = json.loads((EVENTS / path).read_text()) if path else document
        for step in pointer.split("/")[1:]:
            target = target[step]
        assert isinstance(target, dict), reference


# --- OpenAPI --------------------------------------------------------------------------------------


def test_openapi_document_is_valid() -> None:
    document = yaml.safe_load((EVENTS / schemas.OPENAPI).read_text(encoding="utf-8"))
    assert document["openapi"].startswith("3.1")
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []
    del document["info"]["title"]
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) != []


def test_openapi_describes_the_deployed_routes() -> None:
    paths = schemas.openapi()["paths"]
    described = {f"{method.upper()} {path}" for path, routes in paths.items() for method in routes}
    template = (EVENTS.parent / "template.yaml").read_text(encoding="utf-8")
    deployed = set(re.findall(r"RouteKey: (.+)", template))
    assert described == deployed - {"POST /receipts"}


# --- README ---------------------------------------------------------------------------------------

README = (EVENTS / "README.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", README))


def models(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {
        entry
        for entry in (vars(request) | vars(parts)).values()
        if isinstance(entry, type) and issubclass(entry, model) and entry.__name__[0] != "_"
    }


def test_contract_readme_names_every_field() -> None:
    top = set(NotificationRequest.model_fields) - {"template"}
    template = {f"template.{name}" for name in parts.Template.model_fields}
    others = models(BaseModel) - {NotificationRequest, parts.Template, Strict, BaseModel}
    assert len(others) == 10
    inner = {name for model in others for name in model.model_fields}
    assert sorted((top | template | inner) - CODE) == []


def test_contract_readme_names_every_kind() -> None:
    kinds = {
        model.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
        for model in models(BaseModel)
        if "type" in model.model_fields
    }
    assert len(kinds) == 10
    assert sorted(kinds - CODE) == []


def test_contract_readme_says_what_to_do_for_every_reason() -> None:
    section = README.partition("## Dead letters")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]{10,} \| [^|]{5,} \|$", section, re.MULTILINE)
    assert sorted(rows) == sorted(Reason)
    attributes = schema("dead-letter.schema.json")
    names = {*attributes["properties"], *attributes["$defs"]["Failure"]["properties"]}
    assert sorted(names - CODE) == []


def test_contract_readme_warns_that_a_redrive_may_send_twice() -> None:
    for reason, named in {"undelivered": "Code 86", "outcome_unknown": "a redrive"}.items():
        [row] = re.findall(rf"^\| `{reason}` \|.*$", README, re.MULTILINE)
        assert named in row
        assert "may send it twice" in row


def test_contract_readme_shows_every_sample_with_its_status() -> None:
    rows = dict(re.findall(r"^\| \[([\w.-]+)\]\(\1\) \| [^|]+ \| `?([^|`]+)`? \|$", README, re.M))
    assert list(rows) == list(SAMPLES)
    ends = {"delivered", "not sent again", *Reason}
    assert set(rows.values()) <= ends
    assert {name: rows[name] for name in UNUSABLE} == {name: str(r) for name, r in UNUSABLE.items()}


def test_contract_readme_names_every_member_and_status_of_an_event() -> None:
    detail = schema("status-event.schema.json")["$defs"]["Detail"]["properties"]
    section = README.partition("## Status events")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*`) \| .{5,} \|$", section, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(rows)) == detail["status"]["enum"]
    assert sorted(name for name in detail if f'"{name}"' not in section) == []


def test_contract_readme_samples_are_valid() -> None:
    shown, event, change = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert parse(shown) == parse(SAMPLES["01-text.json"])
    EVENT_VALIDATOR.validate(json.loads(event))
    validator("template-change.schema.json").validate(json.loads(change))
