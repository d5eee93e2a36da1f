"""Sizes that a reader can hold in mind. What must be larger says why, here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("layers/notifier/**/*.py"), *ROOT.glob("functions/**/*.py")]
TESTS = list(ROOT.glob("tests/**/*.py"))
MAX_MODULE_LINES = 400
MAX_CLASS_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_TEST_MODULE_LINES = 800
# How a docstring begins that does not say what its function does, or says it in no plain verb.
NO_VERBS = {"Give", "Gives", "Tell", "Tells", "Let", "Lets"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_module_class_and_function_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    for node in nodes(path):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            limit = MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            assert lines <= limit, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_test_module_is_short_enough_to_find_a_test_in(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_TEST_MODULE_LINES


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_docstring_begins_with_what_its_object_does(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            first, *_ = (ast.get_docstring(node) or "-").split(maxsplit=1)
            assert first not in NO_VERBS, f"{getattr(node, 'name', 'the module')}: {first}"
