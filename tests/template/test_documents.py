"""The documents name what operators and producers meet, and what they say is there."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from notifier.contract.parse import parse
from notifier.domain.failures import Reason
from notifier.domain.status import SENT_OR_LATER, UNDELIVERED
from notifier.use_cases.record_receipt import ReceiptOutcome
from notifier.use_cases.send_notification.outcomes import Outcome
from tests.template.transformed import ROOT, Template, load

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
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


# --- README ---------------------------------------------------------------------------------------


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.split()) <= 1000


def test_the_readmes_request_is_valid_and_no_samples_id() -> None:
    [shown] = re.findall(r"(?ms)^```json\n(.*?)^```$", README)
    samples = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("events/*.json"))

    assert f'"{parse(shown).request.id}"' not in samples
    assert f"ID={parse(shown).request.id}" in README


# --- links and paths ------------------------------------------------------------------------------

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "*/README.md", ".github/*.md")
    for path in ROOT.glob(pattern)
    if not path.parts[len(ROOT.parts)].startswith(".venv")
)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)

    for path, anchor in links:
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def names_in(source: Path) -> set[str]:
    """Return the classes and functions of a module, methods as `Class.method`."""
    found = set()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [entry for entry in node.body if isinstance(entry, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


@pytest.mark.parametrize(
    ("question", "names"),
    [
        (
            "What happens to a message whose send timed out?",
            ["Delivery._send_claimed", "Reconciliation.reconcile"],
        ),
        ("Where is the wait after a 429 computed?", ["Waits.for_cooldown", "Breaker.throttled"]),
        ("What would I touch to add a failure reason?", ["Reason", "final_status"]),
    ],
)
def test_a_newcomers_question_is_answered_in_two_files(question: str, names: list[str]) -> None:
    [answer] = re.findall(rf"^\| {re.escape(question)} \| (.+) \|$", CONTRIBUTING, re.MULTILINE)
    named = re.findall(r"`([\w.]+)` in `(layers/[\w/.]+)`", answer)

    assert [name for name, _ in named] == names
    for name, path in named:
        assert name in names_in(ROOT / path)


# --- the template's contents ----------------------------------------------------------------------


def test_the_templates_contents_are_its_banners() -> None:
    text = (ROOT / "template.yaml").read_text(encoding="utf-8")
    [contents] = re.findall(r"(?ms)^# Contents.+?^#$\n(.+?)^#$", text)

    listed = re.findall(r"^#   (\w+) ", contents, re.MULTILINE)
    assert listed == re.findall(r"^ *# -{20,} (\w+)$", text, re.MULTILINE)
    functions = re.findall(r"CodeUri: functions/(\w+)", text)
    assert re.findall(r"\w+", contents[contents.index("log group:") + 10 :])[: len(functions)] == (
        functions
    )


# --- deploying ------------------------------------------------------------------------------------

POLICY = json.loads((ROOT / "functions/stages/deployer-policy.json").read_text(encoding="utf-8"))
# Services whose prefix in a policy is another than in a resource's type.
PREFIXES = {"apigatewayv2": "apigateway"}


def test_the_deployers_policy_covers_every_service_of_the_stack(production: Template) -> None:
    types = {resource["Type"] for resource in production.transformed["Resources"].values()}
    services = {type_.split("::")[1].lower() for type_ in types}
    allowed = {
        action.partition(":")[0]
        for statement in POLICY["Statement"]
        for action in statement["Action"]
    }

    assert {PREFIXES.get(service, service) for service in services} | {
        "cloudformation",
        "s3",
    } == allowed


def test_the_deployers_policy_is_narrow_and_fits(tmp_path: Path) -> None:
    # A managed policy may have 6,144 characters, without white space.
    assert len("".join(json.dumps(POLICY).split())) <= 6144
    for statement in POLICY["Statement"]:
        assert not [action for action in statement["Action"] if action.endswith(":*")]
    [passing] = [one for one in POLICY["Statement"] if "iam:PassRole" in one["Action"]]
    assert passing["Condition"]["StringEquals"]["iam:PassedToService"]
    assert passing["Resource"] == ["arn:aws:iam::*:role/blip-notifier-*"]

    template = tmp_path / "template.json"
    policy = {"Type": "AWS::IAM::ManagedPolicy", "Properties": {"PolicyDocument": POLICY}}
    template.write_text(json.dumps({"Resources": {"Deployer": policy}}), encoding="utf-8")
    answer = subprocess.run(  # noqa: S603
        [Path(sys.executable).with_name("cfn-lint"), "--template", template],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (0, "")


@pytest.mark.parametrize("document", ["README.md", "functions/README.md"])
def test_no_command_holds_a_key(document: str) -> None:
    """A shell's history keeps what is typed: keys go through a file or the environment."""
    commands = "".join(
        re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", (ROOT / document).read_text(encoding="utf-8"))
    )

    assert set(re.findall(r"--secret-string (\S+)", commands)) <= {"file://bots.json"}
    assert set(re.findall(r"--key +(\S+)", commands)) <= {"'$KEY'\"", '\'{"key":'}


def test_the_cost_at_rest_counts_the_alarms(template: Template) -> None:
    """CloudWatch asks 0.10 dollars for each metric that an alarm watches."""
    alarms = template.resources("AWS::CloudWatch::Alarm").values()
    watched = [
        max(
            1, len([1 for query in alarm["Properties"].get("Metrics", []) if "MetricStat" in query])
        )
        for alarm in alarms
    ]

    assert f"{0.10 * sum(watched):.2f} for {len(watched)} alarms" in " ".join(RUNBOOK.split())
