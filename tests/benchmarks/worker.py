"""One competitor as a function's process: takes events on its standard input, answers with figures.

python -m tests.benchmarks.worker ours|textbook|floor LOG
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
ENTRANCES = {
    "ours": "send_notification",
    "receive_receipt": "receive_receipt",
    "record_receipt": "record_receipt",
    "publish_status_events": "publish_status_events",
}
TIMEOUT_SECONDS = 300


def context() -> SimpleNamespace:
    """Return what Lambda hands over beside the event."""
    ends = time.monotonic() + TIMEOUT_SECONDS
    return SimpleNamespace(
        function_name="SendNotification",
        memory_limit_in_mb=int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]),
        invoked_function_arn="arn:aws:lambda:us-east-1:000000000000:function:SendNotification",
        aws_request_id="00000000-0000-0000-0000-000000000000",
        get_remaining_time_in_millis=lambda: int(1000 * (ends - time.monotonic())),
    )


def peak_memory_bytes() -> int:
    """Return the most memory that this process ever held. getrusage knows the parent's as well."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    name, log = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What the function prints goes to CloudWatch and is paid for by the byte.
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    if name in ENTRANCES:
        sys.path.insert(0, str(ROOT / "functions" / ENTRANCES[name]))
    module = "app" if name in ENTRANCES else f"tests.benchmarks.{name}"
    handler = importlib.import_module(module).handler
    print("ready", file=answers)
    for line in sys.stdin:
        event = json.loads(line)
        logged = os.fstat(1).st_size
        begun, cpu = time.perf_counter(), time.process_time()
        answer = handler(event, context())
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        sys.stdout.flush()
        figures = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_bytes": peak_memory_bytes(),
            "logged_bytes": os.fstat(1).st_size - logged,
            "answer": answer,
        }
        print(json.dumps(figures), file=answers)


if __name__ == "__main__":
    main()
