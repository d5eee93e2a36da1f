"""What the linters say, about the template and, where they see more, about what SAM makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.template.transformed import ROOT, TEMPLATE, Template

REGION = "sa-east-1"


def test_sam_validates_the_template_without_credentials(tmp_path: Path) -> None:
    answer = subprocess.run(  # noqa: S603
        [ROOT / ".venv-sam/bin/sam", "validate", "--lint", "--template", TEMPLATE],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SAM_CLI_TELEMETRY": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "is a valid SAM Template" in answer.stdout
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("environment", ["template", "production"])
def test_cfn_lint_finds_nothing_in_the_transformed_template(
    environment: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    template: Template = request.getfixturevalue(environment)
    transformed = tmp_path / "transformed.json"
    transformed.write_text(json.dumps(template.transformed), encoding="utf-8")

    answer = subprocess.run(  # noqa: S603
        [
            Path(sys.executable).with_name("cfn-lint"),
            *("--regions", REGION),
            # The transform puts the values of some parameters in the place of their names. That
            # every parameter is used is checked where the names still stand, in test_parameters.
            *("--ignore-checks", "W2001"),
            *("--template", transformed),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
