"""The template as CloudFormation sees it after the SAM transform."""

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
# What every deploy must say.
WITHOUT_DEFAULT = {"AllowedRecipients": "+"}
NO_VALUE = {"Ref": "AWS::NoValue"}


@dataclass(frozen=True)
class Template:
    """The template before and after the transform, with the parameters' values."""

    source: dict[str, Any]
    transformed: dict[str, Any]
    parameters: dict[str, str]

    def resources(self, type_: str) -> dict[str, dict[str, Any]]:
        """Return the resources of a type by their logical ids."""
        return {
            logical_id: resource
            for logical_id, resource in self.transformed["Resources"].items()
            if resource["Type"] == type_
        }

    def properties(self, logical_id: str) -> dict[str, Any]:
        properties: dict[str, Any] = self.transformed["Resources"][logical_id]["Properties"]
        return properties

    def as_deployed(self) -> dict[str, Any]:
        """Return the transformed template with parameters set and conditions decided."""
        resources = {
            name: resource
            for name, resource in self.transformed["Resources"].items()
            if "Condition" not in resource or self._holds({"Condition": resource["Condition"]})
        }
        parameters = {
            name: definition | {"Default": self.parameters[name]}
            for name, definition in self.transformed["Parameters"].items()
        }
        decided: dict[str, Any] = self._decided(
            self.transformed | {"Parameters": parameters, "Resources": resources}
        )
        return decided

    def _decided(self, node: Any) -> Any:
        match node:
            case {"Fn::If": [str(condition), then, otherwise]}:
                return self._decided(then if self._holds({"Condition": condition}) else otherwise)
            case dict():
                decided = {name: self._decided(value) for name, value in node.items()}
                return {name: value for name, value in decided.items() if value != NO_VALUE}
            case list():
                decided_all = [self._decided(value) for value in node]
                return [value for value in decided_all if value != NO_VALUE]
            case _:
                return node

    def _holds(self, condition: Any) -> bool:
        match condition:
            case {"Condition": name}:
                return self._holds(self.transformed["Conditions"][name])
            case {"Fn::Not": [negated]}:
                return not self._holds(negated)
            case {"Fn::Equals": [left, right]}:
                return self.value(left) == self.value(right)
            case _:
                raise AssertionError(f"no condition that is known here: {condition}")

    def value(self, expression: Any) -> str:
        """Resolve what depends on parameters alone."""
        match expression:
            case {"Ref": str(name)}:
                return self.parameters[name]
            case {"Fn::Sub": str(text)}:
                return re.sub(r"\$\{(\w+)\}", lambda match: self.parameters[match[1]], text)
            case {**other} if other:
                raise AssertionError(f"depends on more than parameters: {other}")
            case _:
                return str(expression)


@cache
def _load(overrides: tuple[tuple[str, str], ...]) -> Template:
    answer = subprocess.run(  # noqa: S603
        [
            ROOT / ".venv-ministack/bin/python",
            Path(__file__).with_name("sam_transform.py"),
            TEMPLATE,
            json.dumps(dict(overrides)),
        ],
        env={"AWS_DEFAULT_REGION": "sa-east-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    templates = json.loads(answer.stdout)
    defaults = {
        name: str(parameter["Default"])
        for name, parameter in templates["source"]["Parameters"].items()
        if "Default" in parameter
    }
    return Template(**templates, parameters=defaults | dict(overrides))


def load(**parameters: str) -> Template:
    """Transform the template with these parameters and the defaults of the others."""
    return _load(tuple(sorted((WITHOUT_DEFAULT | parameters).items())))


def logical_id(expression: Any) -> str:
    """Name the resource that an expression refers to."""
    match expression:
        case {"Ref": str(name)}:
            return name
        case {"Fn::GetAtt": [str(name), str()]}:
            return name
        case _:
            raise AssertionError(f"is not a reference to one resource: {expression}")


def mentions(node: Any) -> set[str]:
    """Collect every name that `Ref`, `Fn::GetAtt` and `Fn::Sub` refer to, at any depth."""
    match node:
        case {"Ref": str(name)}:
            return {name}
        case {"Fn::GetAtt": [str(name), *_]}:
            return {name}
        case {"Fn::Sub": str(text)}:
            return set(re.findall(r"\$\{([\w:]+)", text))
        case dict():
            return {name for value in node.values() for name in mentions(value)}
        case list():
            return {name for value in node for name in mentions(value)}
        case _:
            return set()


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
