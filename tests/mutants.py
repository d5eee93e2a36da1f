"""Runs mutmut over the use cases: a survivor is a change of the code that no test detects.

    make mutants

mutmut needs the package beside its tests, so both are copied to `.mutants/`; `mutmut results` and
`mutmut show NAME` there show the survivors. Exits with 1 if of any module fewer than LEAST_KILLED
per cent of the mutants are killed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / ".mutants"

MODULES = [
    "domain/status",
    "domain/failures",
    "use_cases/slots",
    "use_cases/asking",
    "use_cases/send_notification/batch",
    "use_cases/send_notification/breaker",
    "use_cases/send_notification/delivery",
    "use_cases/send_notification/outcomes",
    "use_cases/send_notification/recipients",
    "use_cases/send_notification/reconciliation",
    "use_cases/send_notification/round",
    "use_cases/send_notification/service_level",
    "use_cases/send_notification/templates",
    "use_cases/send_notification/waits",
    "use_cases/record_receipt",
    "use_cases/sync_templates",
    "use_cases/wake_notifications",
    "use_cases/publish_status_events",
    "aws/outbox",
    "aws/refusals",
]
TESTS = [
    "tests/unit/domain/test_status.py",
    "tests/unit/domain/test_failures.py",
    "tests/unit/blip/test_receipts.py",
    "tests/unit/use_cases",
]
LEAST_KILLED = 85

CONFIGURATION = f"""\
[tool.mutmut]
source_paths = ["notifier"]
only_mutate = {json.dumps([f"notifier/{module}.py" for module in MODULES])}
pytest_add_cli_args = ["-q", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {json.dumps(TESTS)}
use_git_change_detection = false

[tool.pytest]
pythonpath = ["."]
addopts = ["--import-mode=importlib", "--strict-markers"]
filterwarnings = ["error"]
strict = true
"""

# pytest's exit codes for a test that fails and for an error of its own; the others are mutmut's for
# a mutant that never ends.
KILLED = {1, 3, 24, 36, 152, 255, -24}


def copy() -> None:
    """Copy the package and its tests for mutmut."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT / "layers" / "notifier" / "notifier", COPY / "notifier")
    for folder in ("support", "unit"):
        shutil.copytree(ROOT / "tests" / folder, COPY / "tests" / folder)
    (COPY / "pyproject.toml").write_text(CONFIGURATION)


def killed_of(module: str) -> tuple[int, int]:
    """Return how many of a module's mutants were killed, and of how many.

    Raises:
        ValueError: mutmut did not get to all of them.
    """
    results = json.loads((COPY / "mutants" / "notifier" / f"{module}.py.meta").read_text())
    codes = results["exit_code_by_key"].values()
    if not codes or None in codes:
        raise ValueError(f"mutmut did not finish {module}")
    return sum(code in KILLED for code in codes), len(codes)


def main() -> int:
    """Run mutmut on a copy, and print what was killed of each module."""
    copy()
    mutmut = Path(sys.executable).with_name("mutmut")
    subprocess.run([mutmut, "run", "--max-children", "2"], cwd=COPY, check=True)  # noqa: S603
    enough = True
    print()
    for module in MODULES:
        killed, mutants = killed_of(module)
        share = 100 * killed / mutants
        enough = enough and share >= LEAST_KILLED
        print(f"{module:<45}{killed:>5} of {mutants:>4} mutants killed: {share:.1f} %")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
