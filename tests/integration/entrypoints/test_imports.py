"""What a cold start imports: a budget of what, since how long it takes depends on the machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.template.transformed import load

ROOT = Path(__file__).parents[3]
FUNCTIONS = {
    properties["CodeUri"].rpartition("/")[2]: name
    for name, resource in load().source["Resources"].items()
    if (properties := resource["Properties"]) and resource["Type"] == "AWS::Serverless::Function"
}
# Each costs tens of milliseconds, and does nothing for us.
HEAVY = {
    "boto3.dynamodb.transform",  # the layer of boto3 that makes resources out of clients
    "boto3.dynamodb.table",
    "boto3.s3.transfer",
    "aws_xray_sdk",
    "aws_lambda_powertools.utilities.batch",
    "aws_lambda_powertools.utilities.idempotency",
    "aws_lambda_powertools.utilities.parser",
    "aws_lambda_powertools.utilities.validation",
    "jsonschema",
    "phonenumbers.geodata",
    "pydantic.v1",
    "requests",
}
ROUTER = "aws_lambda_powertools.event_handler"
BLIP = {"httpx", "httpcore", "h11"}
CONTRACT = {"pydantic", "phonenumbers"}


def imported_by(function: str) -> set[str]:
    """Return the modules that a function imports when it starts, in a fresh interpreter."""
    template = load()
    variables = template.properties(FUNCTIONS[function])["Environment"]["Variables"]
    environment = {
        name: template.parameters.get(value.get("Ref", ""), "a resource")
        if isinstance(value, dict)
        else value
        for name, value in variables.items()
    }
    answer = subprocess.run(
        [sys.executable, "-c", "import app, json, sys; print(json.dumps(list(sys.modules)))"],
        cwd=ROOT / "functions" / function,
        env=environment
        | {
            "PYTHONPATH": str(ROOT / "layers/notifier"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_LAMBDA_FUNCTION_NAME": function,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout))


def test_every_function_has_an_import_budget() -> None:
    assert FUNCTIONS.keys() == {path.parent.name for path in (ROOT / "functions").glob("*/app.py")}
    assert "send_notification" in FUNCTIONS


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_imports_more_than_its_budget(function: str) -> None:
    imported = imported_by(function)

    assert "notifier.settings" in imported
    assert imported & HEAVY == set()


def test_only_the_status_api_imports_a_router() -> None:
    routing = {name for name in FUNCTIONS if ROUTER in imported_by(name)}

    assert routing == {"get_notification"}


def test_functions_without_blip_import_no_http_client() -> None:
    assert imported_by("receive_receipt") & (BLIP | CONTRACT) == set()
    assert imported_by("wake_notifications") & (BLIP | CONTRACT) == set()
    assert imported_by("record_receipt") & BLIP == set()
