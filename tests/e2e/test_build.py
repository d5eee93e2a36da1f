"""The layers come out the same with the tools of macOS as with those of Linux."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.local.machine import ROOT

# Where BSD's tools differ from GNU's, as far as scripts stumble over it. Each calls the real tool.
BSD = {
    "cp": """
case " $* " in *" --"*) echo "cp: illegal option -- -" >&2; exit 64;; esac
for last; do :; done
case " $* " in
  *" -n "*|*" -Rn "*|*" -nR "*) [ -e "$last" ] && { "$REAL" "$@"; exit 1; };;
esac
exec "$REAL" "$@"
""",
    "sed": """
case "$*" in *"\\\\t"*|*"\\\\n"*) echo "sed: no escapes in a replacement" >&2; exit 1;; esac
case " $* " in *" -i "*|*" -r "*|*" --"*) echo "sed: illegal option" >&2; exit 1;; esac
exec "$REAL" "$@"
""",
    "date": """
case " $* " in *" -d "*|*" --"*|*" -I"*) echo "date: illegal option" >&2; exit 1;; esac
exec "$REAL" "$@"
""",
    "find": """
case "$1" in -*) echo "find: illegal option" >&2; exit 1;; esac
case " $* " in *" -printf "*|*" -regextype "*) echo "find: unknown primary" >&2; exit 1;; esac
exec "$REAL" "$@"
""",
}


@pytest.fixture
def bsd(tmp_path: Path) -> str:
    """Return a path for programs on which the tools behave as on macOS."""
    folder = tmp_path / "bsd"
    folder.mkdir()
    for name, script in BSD.items():
        real = shutil.which(name)
        assert real is not None
        tool = folder / name
        tool.write_text(f"#!/bin/sh\nREAL={real}\n{script}")
        tool.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def built(layer: str, folder: Path, path: str) -> dict[str, str]:
    """Build a layer as `sam build` does, in a copy; return its files with their digests."""
    source, target = folder / "source" / layer, folder / "artifacts"
    # The makefile looks two folders up for the lock's environment.
    shutil.copytree(ROOT / "layers" / layer, source)
    target.mkdir()
    name = f"build-{layer.title()}Layer"
    answer = subprocess.run(  # noqa: S603
        [
            *("make", "--no-print-directory", "-f", ROOT / "layers" / layer / "Makefile", name),
            f"ARTIFACTS_DIR={target}",
        ],
        cwd=source,
        env=os.environ | {"PATH": f"{ROOT / '.venv/bin'}{os.pathsep}{path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return {
        str(path.relative_to(target)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in target.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("layer", ["notifier", "dependencies"])
def test_layers_are_the_same_with_the_tools_of_macos(layer: str, tmp_path: Path, bsd: str) -> None:
    here = built(layer, tmp_path / "here", os.environ["PATH"])

    assert here
    assert built(layer, tmp_path / "there", bsd) == here


def test_the_dependencies_hold_the_modules_of_both_processors(tmp_path: Path) -> None:
    names = built("dependencies", tmp_path, os.environ["PATH"])

    for processor in ("aarch64", "x86_64"):
        assert any(f"pydantic_core.cpython-313-{processor}" in name for name in names)


def test_help_lists_the_targets_with_the_tools_of_macos(bsd: str) -> None:
    answer = subprocess.run(
        ["make", "help"],  # noqa: S607
        cwd=ROOT,
        env=os.environ | {"PATH": bsd},
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stderr
    assert re.search(r"^  run +deploy to a local AWS", answer.stdout, re.MULTILINE)
