"""Runs SAM CLI: builds what a local AWS takes, in a folder of its own, and deploys it."""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.local.aws import REGION
from tests.local.machine import ROOT, STATE, StackError, tail
from tests.local.metrics import fit_for_ministack

if TYPE_CHECKING:
    from tests.local.stack import Step


def machine_architecture() -> str:
    """Return the template's word for this machine's processor."""
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x86_64"


@contextlib.contextmanager
def built(architecture: str, home: Path, step: "Step") -> Iterator[Path]:
    """Return the template as built and made fit for a local AWS; no other build starts meanwhile.

    Not in `.aws-sam/build`, where `sam deploy` to the real AWS would find it.
    """
    build, template = STATE / "build", STATE / "build/local.yaml"
    STATE.mkdir(exist_ok=True)
    with (STATE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _sources(architecture)
        mark = build / "sources"
        if not mark.exists() or mark.read_text() != sources:
            mark.unlink(missing_ok=True)
            with step("Functions and layers, built"):
                run_sam(
                    "build",
                    *("--build-dir", build, "--cache-dir", STATE / "cache"),
                    *("--cached", "--parallel"),
                    *("--parameter-overrides", f"Architecture={architecture}"),
                    log=home / "sam-build.log",
                )
                content = yaml.safe_load((build / "template.yaml").read_text())
                template.write_text(yaml.safe_dump(_localised(content), sort_keys=False))
            mark.write_text(sources)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield template


def _sources(architecture: str) -> str:
    """Return one state of everything that goes into the build from another."""
    digest = hashlib.sha256(architecture.encode())
    local = Path(__file__).parent
    files = [ROOT / "template.yaml", ROOT / "uv.lock", local / "build.py", local / "metrics.py"]
    for folder in ("functions", "layers"):
        files += sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    for path in files:
        if "__pycache__" not in path.parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return digest.hexdigest()


def _localised(template: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a built template what a local AWS refuses.

    The tests of the template see to what is left out here.
    """
    for resource in template["Resources"].values():
        # ministack refuses a template with CodeDeploy's types in it, also under a condition.
        resource.get("Properties", {}).pop("DeploymentPreference", None)
    fit_for_ministack(template)
    return template


def run_sam(
    command: str, *arguments: object, log: Path, environment: dict[str, str] | None = None
) -> None:
    """Run SAM CLI with its output in a log.

    Raises:
        StackError: it failed.
    """
    folder = STATE / "sam"
    folder.mkdir(exist_ok=True)
    # It asks PyPI for news of itself, unless it remembers that it has just done so.
    (folder / "metadata.json").write_text(json.dumps({"lastVersionCheck": time.time()}))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "SAM_", "PYTHON", "VIRTUAL_ENV"))
    }
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own tool, no input from elsewhere
            [ROOT / ".venv-sam/bin/sam", command, *map(str, arguments)],
            cwd=ROOT,
            env=inherited
            | {
                # `sam build` looks for python3.13 there.
                "PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_DEFAULT_REGION": REGION,
                "SAM_CLI_TELEMETRY": "0",
                "SAM_CLI_POLL_DELAY": "0.3",
                "__SAM_CLI_APP_DIR": str(folder),
            }
            | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        raise StackError(f"`sam {command}` failed; its log, {log}, ends with\n{tail(log)}")
