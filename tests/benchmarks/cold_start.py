"""Cold starts of what `sam build` makes, in AWS's Runtime Interface Emulator.

Against a bare handler that imports boto3, httpx and Powertools' logger and makes the same clients,
and then makes the floor's calls.
"""

import compileall
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from tests.benchmarks.figures import ratio
from tests.benchmarks.lab import OURS, ROOT, Lab, batch
from tests.e2e.test_runtime_interface import ARCHITECTURE, LAYERS, answers, build, files, process
from tests.local.machine import HOST, free_ports, wait_until

ROUNDS = 9
PYTHON = ROOT / ".venv-ministack/bin/python"
EMULATOR = (
    ROOT
    / f".venv-sam/lib/python3.13/site-packages/samcli/local/rapid/aws-lambda-rie-{ARCHITECTURE}"
)
BARE = "bare"
EVENT_SECONDS = 30


def _prepare(folder: Path) -> dict[str, Path]:
    """Build this project and the bare handler, both compiled. Return their folders."""
    built = build(folder)
    bare = folder / BARE
    bare.mkdir()
    for name in ("bare", "floor"):
        shutil.copy(Path(__file__).with_name(f"{name}.py"), bare)
    (bare / "app.py").write_text("import bare\nfrom floor import handler\n", encoding="utf-8")
    ours = built / "SendNotificationFunction"
    for task in (bare, ours):
        compileall.compile_dir(task, quiet=2)
    return {OURS: ours, BARE: bare, "layers": built}


def _invoke(task: Path, layers: str, lab: Lab, event: Any, folder: Path) -> dict[str, float]:
    """Start a sandbox and invoke it with two batches. Return times and memory."""
    port = free_ports(2)
    command = [
        *(EMULATOR, "--runtime-interface-emulator-address", f"{HOST}:{port}"),
        *("--runtime-api-address", f"{HOST}:{port + 1}"),
        *(PYTHON, "-m", "awslambdaric", "app.handler"),
    ]
    environment = lab.environment("SendNotificationFunction") | {
        "PYTHONPATH": layers,
        "LAMBDA_TASK_ROOT": str(task),
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(EVENT_SECONDS),
    }
    with process(command, task, environment, folder / "log"):
        wait_until(lambda: answers(port, "/"), "the Runtime Interface Emulator")
        begun = time.perf_counter()
        connection = http.client.HTTPConnection(HOST, port, timeout=EVENT_SECONDS)
        connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
        answer = json.loads(connection.getresponse().read())
        seconds = time.perf_counter() - begun
        connection.close()
        assert answer == {"batchItemFailures": []}, (folder / "log").read_text()
        return {"first_batch": seconds, "peak_bytes": _peak_bytes(port)}


def _peak_bytes(port: int) -> float:
    """Return the most memory that the runtime's process under this emulator ever held."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            command = status.with_name("cmdline").read_bytes()
            environment = status.with_name("environ").read_bytes()
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue  # it has ended meanwhile
        # The emulator's command line names the runtime's as well.
        ours = command.startswith(str(PYTHON).encode()) and b"awslambdaric" in command
        if ours and f"{HOST}:{port + 1}".encode() in environment:
            return float(lines["VmHWM"].split()[0]) * 1024
    raise LookupError("the runtime's process")


def _imports(module: str, path: str, environment: dict[str, str]) -> Counter[str]:
    """Return the seconds that importing a module takes, by top-level package, itself only."""
    output = subprocess.run(  # noqa: S603
        [PYTHON, "-X", "importtime", "-c", f"import {module}"],
        env=environment | {"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    found: Counter[str] = Counter()
    for itself, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +([\w.]+)", output):
        found[name.partition(".")[0]] += int(itself)
    return found


def measure(lab: Lab, folder: Path) -> dict[str, Any]:
    """Measure by turns."""
    where = _prepare(folder)
    layers = os.pathsep.join(str(where["layers"] / layer / "python") for layer in LAYERS)
    lab.latency(0.1)
    starts: dict[str, list[dict[str, float]]] = {OURS: [], BARE: []}
    imports: dict[str, list[Counter[str]]] = {OURS: [], BARE: []}
    for number in range(-1, ROUNDS):
        for name in (OURS, BARE) if number % 2 else (BARE, OURS):
            task = where[name]
            event = {"Records": batch(lab, known=10, new=0)}
            start = _invoke(task, layers, lab, event, folder)
            module = "app" if name == OURS else "bare"
            environment = lab.environment("SendNotificationFunction")
            took = _imports(module, f"{task}{os.pathsep}{layers}", environment)
            if number >= 0:
                starts[name].append(start)
                imports[name].append(took)
    packages = set().union(*imports[OURS], *imports[BARE])
    return {
        "starts": {
            name: {figure: [start[figure] for start in some] for figure in some[0]}
            for name, some in starts.items()
        },
        "import_seconds": {
            name: {
                package: statistics.median(took[package] for took in some) / 1e6
                for package in packages
            }
            for name, some in imports.items()
        },
        "layer_bytes": {
            layer: sum(path.stat().st_size for path in files(where["layers"] / layer).values())
            for layer in LAYERS
        },
    }


def tables(measured: dict[str, Any]) -> Group:
    """Return the tables."""
    ours, bare = measured["starts"][OURS], measured["starts"][BARE]
    starts = Table(title="Cold start in the Runtime Interface Emulator, ten known, BLiP at 100 ms")
    for heading in ("", "imports and first batch, ms", "peak MB"):
        starts.add_column(heading, justify="right")
    for name, figures in ((OURS, ours), (BARE, bare)):
        first, peak = (statistics.median(figures[what]) for what in ("first_batch", "peak_bytes"))
        starts.add_row(name, f"{first * 1000:.0f}", f"{peak / 1e6:.0f}")
    starts.add_row(
        "ratio",
        ratio(ours["first_batch"], bare["first_batch"]),
        ratio(ours["peak_bytes"], bare["peak_bytes"]),
    )
    imports = Table(title="Imports by package, each itself only (median, ms)")
    for heading in ("package", OURS, BARE):
        imports.add_column(heading, justify="right")
    seconds = measured["import_seconds"]
    # `app` and `bare` are the entrances: mostly the making of the clients.
    for package in sorted(seconds[OURS], key=lambda name: -seconds[OURS][name]):
        if seconds[OURS][package] >= 0.004 or package == BARE:
            imports.add_row(
                package, *(f"{seconds[name][package] * 1000:.0f}" for name in (OURS, BARE))
            )
    imports.add_row("all", *(f"{sum(seconds[name].values()) * 1000:.0f}" for name in (OURS, BARE)))
    sizes = measured["layer_bytes"]
    layers = ", ".join(f"{layer} {size / 1e6:.1f} MB" for layer, size in sizes.items())
    return Group(
        starts, imports, f"Unzipped: {layers}, together {sum(sizes.values()) / 1e6:.1f} MB"
    )
