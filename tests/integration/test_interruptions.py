"""`make` at a terminal: Ctrl-C while it makes the environments or starts, and no Python 3.13."""

import shutil
from pathlib import Path

import pytest

from tests.local.machine import ROOT, wait_until
from tests.support.terminal import CTRL_C, typed

NO_PYTHON = """\
error: Python 3.13: not installed, and cannot be downloaded: install it (Debian:
python3.13, macOS: brew install python@3.13)
"""
# Makes an environment of what it is asked for, or says that it was asked and goes on until it dies.
UV = """#!/bin/sh
[ -e slow ] && { echo $$ > asked; exec sleep 1000; }
case "$1 $UV_PROJECT_ENVIRONMENT" in
  "python "*) [ -e no-python ] && exit 2; exit 0;;
  "sync ") mkdir .venv;;
  "sync "*) mkdir "$UV_PROJECT_ENVIRONMENT";;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What `make` needs of a clone to make the environments, and a uv that reaches nothing."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name in ("Makefile", "uv.lock", ".python-version"):
        shutil.copy(ROOT / name, tmp_path)
    uv = tmp_path / ".venv-uv/bin/uv"
    uv.parent.mkdir(parents=True)
    uv.write_text(UV)
    uv.chmod(0o755)
    (tmp_path / ".venv-uv/.done").touch()
    return tmp_path


def is_alive(process: int) -> bool:
    """Return whether a process is there, and not merely waits for its parent to ask for its end."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_without_python_3_13_one_line_says_how_to_get_it(clone: Path) -> None:
    (clone / "no-python").touch()
    with typed("make run", clone, {}) as command:
        code, shown = command.end()
    assert code
    assert shown == NO_PYTHON
    assert max(map(len, shown.splitlines())) <= 80

    (clone / "no-python").unlink()
    with typed("make setup", clone, {}) as command:
        assert command.end()[0] == 0


@pytest.mark.parametrize("done", [[], [".venv-uv/.python"], [".venv-uv/.python", ".venv/.done"]])
def test_ctrl_c_during_the_set_up_leaves_nothing_running_and_is_made_up_for(
    clone: Path, done: list[str]
) -> None:
    for mark in done:
        (clone / mark).parent.mkdir(exist_ok=True)
        (clone / mark).touch()
    (clone / "slow").touch()
    with typed("make setup", clone, {}) as command:
        asked = clone / "asked"
        wait_until(lambda: asked.exists() and asked.read_text(), "uv to be asked")
        command.press(CTRL_C)
        code, shown = command.end()
    assert code
    assert shown == "stopped\n"
    assert not is_alive(int(asked.read_text()))

    (clone / "slow").unlink()
    with typed("make setup", clone, {}) as command:
        code, shown = command.end()
    assert code == 0, shown
    assert "error" not in shown


@pytest.fixture
def slow_imports(tmp_path: Path) -> dict[str, str]:
    """An environment in which the import of botocore says that it has begun, and never ends."""
    package = tmp_path / "packages/botocore"
    package.mkdir(parents=True)
    text = "import pathlib, signal\npathlib.Path(__file__).with_name('begun').touch()\n"
    (package / "__init__.py").write_text(f"{text}while True:\n    signal.pause()\n")
    return {"PYTHONPATH": str(package.parent)}


@pytest.mark.parametrize("command", ["status", "run", "env", "events"])
def test_ctrl_c_while_a_command_is_imported_shows_no_traceback(
    slow_imports: dict[str, str], command: str
) -> None:
    begun = Path(slow_imports["PYTHONPATH"]) / "botocore/begun"
    with typed(f"make {command}", ROOT, slow_imports) as process:
        wait_until(begun.exists, "the import to begin")
        process.press(CTRL_C)
        code, shown = process.end()
    assert code
    assert shown.replace("^C", "").strip() in {"", "stopped"}
