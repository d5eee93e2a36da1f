"""Run ministack so that nothing of it outlives the process that started it.

Runs under the interpreter of `.venv-ministack`, in a process group of its own. That process holds
the other end of our standard input: however it ends, the pipe closes, and ministack goes with the
sandboxes of its functions, which are in the same group.
"""

import contextlib
import hashlib
import json
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ministack.app import main  # type: ignore[import-not-found]
from ministack.core import lambda_runtime  # type: ignore[import-not-found]
from ministack.services import (  # type: ignore[import-not-found]
    cloudwatch,
    dynamodb,
    lambda_svc,
    sqs,
)
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
    """Deliver messages of other groups before those of a group that has many in flight.

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


# How often a batch that is not full is looked at again while its window is open.
LOOK_SECONDS = 0.05
# How many records are looked at for a batch, as of AWS's GetRecords.
MAX_RECORDS = 1000


def _poll_streams() -> bool:
    """Hand each mapping of a table's stream its batches, one at a time, in a thread of its own.

    ministack calls the function in the one thread that polls for all mappings: while it publishes,
    no request would be sent. It knows neither windows nor partial answers, and would take a
    partial answer for success. A table's stream has one shard here: all is in order.
    """
    handed_over = False
    for account, region, mapping in lambda_svc._iter_all_esms():
        source = mapping["EventSourceArn"]
        if not mapping["Enabled"] or ":dynamodb:" not in source:
            continue
        with _in_scope(account, region):
            mapping_id, table = mapping["UUID"], source.split("/")[1]
            lambda_svc._init_stream_position(mapping_id, source, mapping["StartingPosition"])
            position = lambda_svc._dynamodb_stream_positions[mapping_id]
            is_busy = lambda_svc._esm_inflight.get(mapping_id, 0)
            is_pausing = lambda_svc._esm_backoff_until.get(mapping_id, 0) > time.time()
            if is_busy or is_pausing or position >= dynamodb.stream_end_position(table):
                continue
            lambda_svc._dispatch_esm_batch(mapping_id, _hand_over, mapping, table, position)
            handed_over = True
    return handed_over


@contextlib.contextmanager
def _in_scope(account: str, region: str) -> Iterator[None]:
    """Run ministack's look-ups in an account and a region."""
    tokens = lambda_svc._request_account_id.set(account), lambda_svc._request_region.set(region)
    try:
        yield
    finally:
        lambda_svc._request_account_id.reset(tokens[0])
        lambda_svc._request_region.reset(tokens[1])


def _hand_over(mapping: Json, table: str, position: int) -> None:
    """Hand over what comes within the window; go on behind it, or from what the answer names."""
    mapping_id, window = mapping["UUID"], mapping["MaximumBatchingWindowInSeconds"]
    until = time.monotonic() + window
    while True:
        batch, end = _batch(mapping, table, position)
        if len(batch) >= mapping["BatchSize"] or time.monotonic() >= until:
            break
        time.sleep(LOOK_SECONDS)
    if batch:
        result = _call(mapping, list(batch.values()))
        failed = _failed(mapping, result)
        if failed is not None:
            # Where it does not know what the answer names, AWS takes it for a whole failure.
            numbers = {one["dynamodb"]["SequenceNumber"]: at for at, one in batch.items()}
            end = min((numbers.get(number, position) for number in failed), default=position)
            pause = lambda_svc._ESM_BACKOFF_SECONDS
            lambda_svc._esm_backoff_until[mapping_id] = time.time() + pause
    lambda_svc._dynamodb_stream_positions[mapping_id] = end


def _batch(mapping: Json, table: str, position: int) -> tuple[dict[int, Json], int]:
    """Return the next records that the filter lets through, by position, and where they end."""
    batch: dict[int, Json] = {}
    end = max(position, dynamodb.stream_start_position(table))
    for record in dynamodb.stream_records_since(table, end, MAX_RECORDS):
        if len(batch) >= mapping["BatchSize"]:
            break
        if lambda_svc._apply_filter_criteria([record], mapping):
            batch[end] = record
        end += 1
    return batch, end


def _call(mapping: Json, records: list[Json]) -> Json:
    """Call the function; measure how old the last record is, which is no metric of ministack's."""
    name = mapping["FunctionName"]
    age = time.time() - records[-1]["dynamodb"]["ApproximateCreationDateTime"]
    dimensions = {"FunctionName": name}
    cloudwatch.record_metric("AWS/Lambda", "IteratorAge", 1000 * age, "Milliseconds", dimensions)
    function, _ = lambda_svc._get_func_record_for_qualifier(name, mapping["Qualifier"])
    result: Json = lambda_svc._execute_function(function, {"Records": records})
    if log := result.get("log"):
        print(log, flush=True)  # the functions' metrics are read from it
    return result


def _failed(mapping: Json, result: Json) -> list[str] | None:
    """Return the records that an answer names; None if all went well, none if nothing did."""
    if result.get("error"):
        return []
    body = result.get("body")
    answer = json.loads(body) if isinstance(body, str) else body
    failures = (answer or {}).get("batchItemFailures")
    if not failures or "ReportBatchItemFailures" not in mapping["FunctionResponseTypes"]:
        return None
    return [failure.get("itemIdentifier") or "" for failure in failures]


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
lambda_svc._poll_dynamodb_streams = _poll_streams
provisioners._sm_secret_string = _without_punctuation(provisioners._sm_secret_string)
for kind in ("Application", "DeploymentGroup"):
    provisioners._RESOURCE_HANDLERS[f"AWS::CodeDeploy::{kind}"] = {
        "create": _nothing,
        "delete": lambda *_: None,
    }
lambda_runtime.zipfile = types.SimpleNamespace(**vars(zipfile) | {"ZipFile": _Archive})
threading.Thread(target=_leave_with_the_parent, daemon=True).start()
main()
