"""The documents name whatever an operator or a producer meets."""

import re

import pytest

from notifier.domain.failures import Reason
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED
from notifier.use_cases.record_receipt import ReceiptOutcome
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.template.transformed import ROOT, Template, load

RUNBOOK = (ROOT / "functions/README.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "events/README.md").read_text(encoding="utf-8")
SOURCES = [path.read_text(encoding="utf-8") for path in (ROOT / "layers/notifier").rglob("*.py")]
# Calls that count or measure, with the name in the call.
COUNTED = re.compile(r"""\b(?:count|took|age|count_by|add_metric)\(\s*\[?"([a-z_]+)\"""")


def metrics() -> set[str]:
    written_out = {name for source in SOURCES for name in COUNTED.findall(source)}
    assert {
        "look_up",
        "sent_to_received",
        "webhook_receipt",
        "receipts_polled",
        "receipts_late",
    } <= written_out
    return written_out | {*map(str, Outcome), *map(str, ReceiptOutcome)}


@pytest.mark.parametrize("name", load().source["Parameters"])
def test_parameters_are_in_the_runbook(name: str) -> None:
    assert f"`{name}`" in RUNBOOK


def test_every_variable_is_a_parameter_or_named(template: Template) -> None:
    for function in template.resources("AWS::Lambda::Function"):
        for variable in template.properties(function)["Environment"]["Variables"]:
            parameter = variable.title().replace("_", "")
            assert parameter in template.source["Parameters"] or f"`{variable}`" in RUNBOOK


@pytest.mark.parametrize("name", sorted(metrics()))
def test_metrics_are_in_the_runbook(name: str) -> None:
    assert f"`{name}`" in RUNBOOK


@pytest.mark.parametrize("name", sorted({*Reason, *SENT_OR_LATER, *UNDELIVERED}))
def test_reasons_and_statuses_are_in_the_contract(name: str) -> None:
    assert f"`{name}`" in CONTRACT


@pytest.mark.parametrize("name", load().resources("AWS::Lambda::Function"))
def test_functions_are_in_the_runbook(template: Template, name: str) -> None:
    folder = template.source["Resources"][name]["Properties"]["CodeUri"]
    assert f"`{folder.removeprefix('functions/')}`" in RUNBOOK
