"""Run ministack so that nothing of it outlives the process that started it.

Runs under the interpreter of `.venv-ministack`, in a process group of its own. That process holds
the other end of our standard input: however it ends, the pipe closes, and ministack goes with the
sandboxes of its functions, which are in the same group.
"""

import hashlib
import os
import signal
import string
import sys
import tempfile
import threading
import time
import types
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ministack.app import main  # type: ignore[import-not-found]
from ministack.core import lambda_runtime  # type: ignore[import-not-found]
from ministack.services import cloudwatch, sqs  # type: ignore[import-not-found]
from ministack.services.cloudformation import provisioners  # type: ignore[import-not-found]

type Json = dict[str, Any]

NOISY = 30


class _Archive(zipfile.ZipFile):
    """Unpacks every layer once, for all sandboxes.

    ministack unpacks the layers anew for each sandbox, one file after the other in one process. The
    first five sandboxes would keep the first requests waiting for up to ten seconds.
    """

    _unpacking = threading.Lock()
    _layers = Path(tempfile.gettempdir()) / "layers"

    def extractall(self, path: Any = None, members: Any = None, pwd: Any = None) -> None:
        if not Path(path).name.startswith("layer_"):
            super().extractall(path, members, pwd)
            return
        digest = hashlib.sha256(Path(str(self.filename)).read_bytes()).hexdigest()
        with self._unpacking:
            unpacked = self._layers / digest
            if not unpacked.exists():
                super().extractall(unpacked)
        for entry in unpacked.iterdir():
            (Path(path) / entry.name).symlink_to(entry)


def _fairly(receive: Callable[..., Any]) -> Callable[..., Any]:
    """Let a queue show messages of other groups before those of a group that has many in flight.

    On AWS that is what a standard queue does with `MessageGroupId`; ministack goes by age alone.
    """

    def fair(queue: dict[str, Any], *arguments: Any) -> Any:
        now, messages = time.time(), queue["messages"]
        flying = Counter(
            each.get("group_id")
            for each in messages
            if each.get("receive_count") and each["visible_at"] > now
        )
        noisy = {group for group, count in flying.items() if count >= NOISY}
        if noisy and not queue["is_fifo"]:
            messages.sort(key=lambda each: each.get("group_id") in noisy)
        return receive(queue, *arguments)

    return fair


def _by_dimensions(evaluate: types.FunctionType) -> Callable[[dict[str, Any]], None]:
    """Judge an alarm by the metric with its dimensions, as CloudWatch does.

    ministack goes by the metric's name alone: one stack would ring the alarms of the others.
    """

    def evaluate_own(alarm: dict[str, Any]) -> None:
        wanted = cloudwatch._dims_key(cloudwatch._dims_from_list(alarm.get("Dimensions") or []))
        own = {key: seen for key, seen in cloudwatch._metrics.items() if key[2] == wanted}
        types.FunctionType(evaluate.__code__, vars(cloudwatch) | {"_metrics": own})(alarm)

    return evaluate_own


def _nothing(logical_id: str, _properties: dict[str, Any], stack: str) -> tuple[str, Json]:
    """Stand in for a resource that ministack does not know, and that changes nothing here."""
    return f"{stack}-{logical_id}", {}


def _without_math(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make an alarm of the first metric of a formula: ministack refuses metric math."""

    def record(name: str, properties: dict[str, Any]) -> Any:
        stats = [one["MetricStat"] for one in properties.get("Metrics", []) if "MetricStat" in one]
        if stats:
            kept = {key: value for key, value in properties.items() if key != "Metrics"}
            first = stats[0]
            properties = kept | first["Metric"]
            properties |= {"Period": first["Period"], "Statistic": first["Stat"]}
        return make(name, properties)

    return record


def _without_punctuation(generate: Callable[[Json], str]) -> Callable[[Json], str]:
    """Honour `ExcludePunctuation`, as Secrets Manager does.

    ministack leaves it out: one secret in ninety would begin with a brace, as only a JSON one may.
    """

    def generated(properties: Json) -> str:
        asked = properties.get("GenerateSecretString") or {}
        if str(asked.get("ExcludePunctuation")).lower() == "true":
            excluded = asked.get("ExcludeCharacters", "") + string.punctuation
            asked = asked | {"ExcludeCharacters": excluded}
            properties = properties | {"GenerateSecretString": asked}
        return generate(properties)

    return generated


def _leave_with_the_parent() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


sqs._collect_msgs = _fairly(sqs._collect_msgs)
cloudwatch._evaluate_alarm = _by_dimensions(cloudwatch._evaluate_alarm)
provisioners._cw_metric_alarm_record = _without_math(provisioners._cw_metric_alarm_record)
provisioners._sm_secret_string = _without_punctuation(provisioners._sm_secret_string)
for kind in ("Application", "DeploymentGroup"):
    provisioners._RESOURCE_HANDLERS[f"AWS::CodeDeploy::{kind}"] = {
        "create": _nothing,
        "delete": lambda *_: None,
    }
lambda_runtime.zipfile = types.SimpleNamespace(**vars(zipfile) | {"ZipFile": _Archive})
threading.Thread(target=_leave_with_the_parent, daemon=True).start()
main()
