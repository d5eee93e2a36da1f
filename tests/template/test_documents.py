"""The documents name what operators and producers meet, and what they say is there."""

import ast
import json
import re
import subprocess
import sys
import tokenize
from io import StringIO
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name

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


def test_the_log_lines_that_the_runbook_quotes_are_logged() -> None:
    quoted = re.findall(r"`(?!make |aws )([a-z']+(?: [A-Za-z']+)+)`", " ".join(RUNBOOK.split()))
    sources = " ".join(" ".join(SOURCES).split())

    assert {"delivery crashed", "the breaker stays open"} <= {*quoted}
    assert [line for line in quoted if line not in sources] == []


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


# --- words ----------------------------------------------------------------------------------------

# Words that this project does not use, or uses for one thing only. A subject is a named thing.
BANNED = re.compile(
    r"\b(?:whoever|whomever|nobody|somebody|anybody|everybody|told|upkeep|mends?|hides?|hidden"
    r"|how dear|(?<!dead )(?<!dead-)letters?(?! and digits| first))\b",
    re.IGNORECASE,
)
FIRST_WORD = re.compile(r"(?:Give|Tell|Let)s?\b")
MODULES = sorted(
    path
    for folder in (
        "layers/notifier/notifier",
        "functions",
        *(
            f"tests/{name}"
            for name in (
                "support",
                "unit",
                "integration",
                "faults",
                "benchmarks",
                "template",
                "e2e",
                "browser",
            )
        ),
    )
    for path in (ROOT / folder).rglob("*.py")
)


def comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def docstrings(source: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [docstring for node in nodes if (docstring := ast.get_docstring(node))]


def banned(*texts: str) -> list[str]:
    return BANNED.findall(" ".join(" ".join(texts).split()))


@pytest.mark.parametrize(
    "name", ["README.md", "*/README.md", ".github/*.md", "template.yaml", "Makefile"]
)
def test_documents_use_the_words_of_the_project(name: str) -> None:
    documents = [path for path in ROOT.glob(name) if ".venv" not in str(path.relative_to(ROOT))]

    assert documents
    for document in documents:
        assert banned(document.read_text(encoding="utf-8")) == [], document


def test_the_changelog_has_old_words_in_its_table_only() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    outside = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)

    assert banned(re.sub(r"`[^`]+`", "", outside)) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_comments_use_the_words_of_the_project(module: Path) -> None:
    source = module.read_text(encoding="utf-8")

    assert banned(*docstrings(source), *comments(source)) == []
    assert [text for text in docstrings(source) if FIRST_WORD.match(text)] == []


def test_help_texts_use_the_words_of_the_project() -> None:
    parser = subprocess.run(
        [sys.executable, "-m", "functions.cli", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert banned(parser.stdout) == []


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_commands_that_are_named_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [targets] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    text = document.read_text(encoding="utf-8")
    code = re.findall(r"(?ms)^ *```sh\n.*?^ *```$|`[^`\n]+`", text)
    named = re.findall(r"(?<![\w-])make ([a-z][a-z0-9-]*)", " ".join(code))

    assert {*named} - {*targets.split()} == set()


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_paths_that_are_named_exist(document: Path) -> None:
    """They are written from the root, the document, the package, or the tests."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`([\w.-]+/[\w./-]*)`", text)
    paths = [path for path in named if not re.search(r"\b(?:NAME|STAGE)\b", path)]
    bases = [ROOT, document.parent, ROOT / "layers/notifier/notifier", ROOT / "tests"]

    assert [path for path in paths if not any((base / path).exists() for base in bases)] == []


PACKAGE = ROOT / "layers/notifier/notifier"


@pytest.mark.parametrize(
    "folder", ["", "aws", "blip", "contract", "domain", "use_cases", "use_cases/send_notification"]
)
def test_every_module_is_on_the_map(folder: str) -> None:
    """Those of `send_notification` are on a map of their own, the order of reading."""
    within = folder == "use_cases/send_notification"
    path = PACKAGE / folder / "__init__.py" if within else ROOT / "layers/README.md"
    named = re.findall(
        r"\w+(?:\.py|/)", path.read_text(encoding="utf-8").partition("## Decisions")[0]
    )
    modules = {module.name for module in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    packages = {f"{init.parent.name}/" for init in (PACKAGE / folder).glob("*/__init__.py")}

    assert (modules | packages) - {*named} == set()


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
        ("Where is the wait after a 429 computed?", ["cooldown", "Waits.for_cooldown"]),
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


def aws_commands() -> list[tuple[str, str, list[str]]]:
    """Return service, operation and options of the AWS CLI's commands in the runbook."""
    blocks = "".join(re.findall(r"(?ms)^ *```sh\n(.*?)^ *```$", RUNBOOK)).replace("\\\n", " ")
    found = re.findall(r"\baws ([a-z-]+) ([a-z-]+)([^\n;|&]*)", blocks)
    return [(service, name, re.findall(r" --([a-z-]+)", rest)) for service, name, rest in found]


def test_the_runbooks_aws_commands_have_the_options_that_they_use() -> None:
    session = botocore.session.Session()
    everywhere = {"output", "query"}
    checked = 0
    for service, name, options in aws_commands():
        if (service, name) in {("logs", "tail"), ("dynamodb", "wait")}:
            continue  # of the CLI itself
        model = session.get_service_model(service)
        operations = {xform_name(one, "-"): one for one in model.operation_names}
        assert name in operations, f"aws {service} {name}"
        shape = model.operation_model(operations[name]).input_shape
        known = {xform_name(member, "-") for member in (shape.members if shape else {})}
        assert set(options) - known - everywhere == set(), f"aws {service} {name}"
        checked += 1
    assert checked > 25


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
