"""What Lambda's runtime does for a function: loads it, and hands it a context."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from notifier import telemetry

FUNCTIONS = Path(__file__).parents[2] / "functions"


def a_context(seconds: float = 30) -> Any:
    """Return the context of an invocation with so much time left."""
    return SimpleNamespace(
        function_name="made-up",
        memory_limit_in_mb=512,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:made-up",
        aws_request_id="request",
        get_remaining_time_in_millis=lambda: seconds * 1000,
    )


def load_app(function: str) -> dict[str, Any]:
    """Return what a function's `app.py` defines, without the metrics that other tests left."""
    app = runpy.run_path(str(FUNCTIONS / function / "app.py"))
    telemetry.metrics.clear_metrics()
    return app


def printed_metrics(output: str) -> list[dict[str, Any]]:
    """Return the lines of metrics in what a function has printed."""
    return [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
