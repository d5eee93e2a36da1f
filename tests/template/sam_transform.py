"""Prints a SAM template as JSON: as it stands, and as CloudFormation makes it of it.

Runs under the interpreter of `.venv-ministack`, which holds AWS's own translator, with the
template's path and a JSON object of parameters as arguments. No AWS is asked for anything.
"""

import copy
import json
import sys
from pathlib import Path

from samtranslator.translator.transform import transform  # type: ignore[import-not-found]
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-not-found]


class NoManagedPolicies:
    """The template names none; the translator asks AWS for their ARNs otherwise."""

    def load(self) -> dict[str, str]:
        return {}


source = yaml_parse(Path(sys.argv[1]).read_text(encoding="utf-8"))
packaged = copy.deepcopy(source)
for resource in packaged["Resources"].values():
    for name in {"CodeUri", "ContentUri"} & resource["Properties"].keys():
        # `sam deploy` uploads the folder and puts its address in the place of its path.
        resource["Properties"][name] = f"s3://artifacts/{resource['Properties'][name]}"
transformed = transform(packaged, json.loads(sys.argv[2]), NoManagedPolicies())
json.dump({"source": source, "transformed": transformed}, sys.stdout)
