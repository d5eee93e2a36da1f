"""Puts into the local CloudWatch what AWS puts into its own: depths of queues, functions' metrics.

ministack records neither, and its alarms judge what was put last. Every few seconds this puts the
depth and age of each queue and the metrics in the functions' logs, zeros included. How late a
stream is read `run_ministack.py` records; here it is zero meanwhile, so that its alarm ends.
"""

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from tests.local.aws import Aws

EVERY_SECONDS = 2.0
NAMESPACE = "BlipNotifier"
QUEUES = "AWS/SQS"
VISIBLE, HIDDEN = "ApproximateNumberOfMessagesVisible", "ApproximateNumberOfMessagesNotVisible"
AGE = "ApproximateAgeOfOldestMessage"
STREAM_AGE = "IteratorAge"
# CloudWatch takes no more of one metric at once.
MAX_VALUES = 150


def fit_for_ministack(template: dict[str, Any]) -> None:
    """Rewrite a built template's alarms to the kind that ministack knows, over these metrics.

    The tests of the template see to what is changed here.
    """
    resources = template["Resources"]
    for name, resource in list(resources.items()):
        if resource["Type"] != "AWS::CloudWatch::Alarm":
            continue
        properties = resource["Properties"]
        if "Metrics" in properties:
            if any("/" in one.get("Expression", "") for one in properties["Metrics"]):
                del resources[name]  # of a share, one metric alone says nothing
                continue
            # It refuses metric math. The first metric of a formula alone is what is left of it.
            stats = [one["MetricStat"] for one in properties.pop("Metrics") if "MetricStat" in one]
            for stat in stats[:1]:
                properties |= stat["Metric"]
                properties |= {"Period": stat["Period"], "Statistic": stat["Stat"]}
        is_measured = properties.get("Namespace") in {QUEUES, NAMESPACE}
        if not is_measured and properties.get("MetricName") != STREAM_AGE:
            # On what AWS alone measures.
            del resources[name]


class Metrics:
    """Puts metrics until it is left."""

    def __init__(
        self,
        aws: "Aws",
        stack: str,
        template: dict[str, Any],
        resources: dict[str, str],
        log: Path,
    ) -> None:
        """Make it.

        Args:
            aws: where the stack is.
            stack: its name. What the functions of other stacks measured is left alone.
            template: what was deployed.
            resources: its resources' physical ids by logical id.
            log: what the functions print, their metrics among it.
        """
        self._aws = aws
        self._stack = stack
        properties = [
            (name, resource["Type"], resource.get("Properties", {}))
            for name, resource in template["Resources"].items()
        ]
        self._queues = {
            name: resources[name] for name, kind, _ in properties if kind == "AWS::SQS::Queue"
        }
        self._readers = [
            resources[alarm["Dimensions"][0]["Value"]["Ref"]]
            for _, kind, alarm in properties
            if kind == "AWS::CloudWatch::Alarm" and alarm["MetricName"] == STREAM_AGE
        ]
        self._watched = {
            alarm["MetricName"]: alarm["Statistic"]
            for _, kind, alarm in properties
            if kind == "AWS::CloudWatch::Alarm" and alarm["Namespace"] == NAMESPACE
        }
        self._log = log
        self._read = 0
        self._empty_at: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(5)  # it may hang with the local AWS, which ends next

    def put(self) -> None:
        """Put everything as it stands now."""
        for queue, url in self._queues.items():
            name = url.rpartition("/")[2]
            self._put(QUEUES, ("QueueName", name), self._of_queue(queue, url))
        for function in self._readers:
            self._put("AWS/Lambda", ("FunctionName", function), {STREAM_AGE: 0.0})
        samples = self._of_functions()
        watched: dict[str, float | list[float]] = {
            name: max(samples.get(name, [0.0])) if how == "Maximum" else sum(samples.get(name, []))
            for name, how in self._watched.items()
        }
        others = {name: values for name, values in samples.items() if name not in self._watched}
        self._put(NAMESPACE, ("service", self._stack), {**watched, **others})

    def _put(
        self, namespace: str, about: tuple[str, str], values: Mapping[str, float | list[float]]
    ) -> None:
        """Put a value, or each of several values, for each metric."""
        name, value = about
        dimensions = [{"Name": name, "Value": value}]
        data: list[Any] = []
        for metric, measured in values.items():
            if isinstance(measured, list):
                data += [
                    {"MetricName": metric, "Values": list(some), "Dimensions": dimensions}
                    for some in batched(measured, MAX_VALUES, strict=False)
                ]
            else:
                data.append({"MetricName": metric, "Value": measured, "Dimensions": dimensions})
        self._aws.cloudwatch.put_metric_data(Namespace=namespace, MetricData=data)

    def _of_queue(self, queue: str, url: str) -> dict[str, float]:
        """Return the depth, and how long ago the queue was empty: no message in it is older."""
        attributes = self._aws.sqs.get_queue_attributes(
            QueueUrl=url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )["Attributes"]
        visible = float(attributes["ApproximateNumberOfMessages"])
        hidden = float(attributes["ApproximateNumberOfMessagesNotVisible"])
        now = time.monotonic()
        if not visible + hidden:
            self._empty_at[queue] = now
        age = now - self._empty_at.setdefault(queue, now)
        return {VISIBLE: visible, HIDDEN: hidden, AGE: age}

    def _of_functions(self) -> dict[str, list[float]]:
        """Return every value that the functions have measured since the last time, by metric."""
        measured: dict[str, list[float]] = defaultdict(list)
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # it is still being written
                self._read += len(line)
                if line.startswith(b'{"_aws"'):
                    emf = json.loads(line)
                    if emf["service"] != self._stack:
                        continue
                    for name in _names(emf):
                        values = emf[name] if isinstance(emf[name], list) else [emf[name]]
                        measured[name] += values
        return measured

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            with contextlib.suppress(BotoCoreError, ClientError):
                self.put()  # where the local AWS does not answer, others say so


def _names(emf: dict[str, Any]) -> Iterator[str]:
    """Return the names of the metrics in a line of CloudWatch's embedded metric format."""
    for directive in emf["_aws"]["CloudWatchMetrics"]:
        for metric in directive["Metrics"]:
            yield metric["Name"]
