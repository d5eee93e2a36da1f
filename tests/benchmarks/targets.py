"""What the benchmarks must show, and whether they do."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tests.benchmarks.cost import sending
from tests.benchmarks.figures import Figures, median_ratio
from tests.benchmarks.lab import FLOOR, OURS, TEXTBOOK

SLOW = 0.1
KNOWN, NEW, ALONE = "ten known", "ten new", "one known"


def table(results: Sequence[Figures], cold: dict[str, Any], grown: dict[str, Any]) -> Table:
    """Compare what was measured with what is promised."""
    found = {(f.case, f.latency, f.competitor): f for f in results}

    def of(case: str, competitor: str = OURS) -> Figures:
        return found[case, SLOW, competitor]

    def time(case: str, competitor: str) -> float:
        return median_ratio(of(case).seconds, of(case, competitor).seconds)

    def cpu(case: str, competitor: str) -> float:
        return median_ratio(of(case).cpu_seconds, of(case, competitor).cpu_seconds)

    def dollars(case: str, competitor: str) -> float:
        return sum(sending(of(case, competitor)).values())

    starts = cold["starts"]
    first, last = grown["items"][0], grown["items"][-1]
    rows = [
        (f"{KNOWN}: time, of the floor's", time(KNOWN, FLOOR), 1.25),
        (f"{NEW}: time, of the floor's", time(NEW, FLOOR), 1.35),
        (f"{KNOWN}: time, of the textbook's", time(KNOWN, TEXTBOOK), 1 / 6),
        (f"{NEW}: time, of the textbook's", time(NEW, TEXTBOOK), 1 / 6),
        (f"{KNOWN}: CPU, of the textbook's", cpu(KNOWN, TEXTBOOK), 0.9),
        (f"{NEW}: CPU, of the textbook's", cpu(NEW, TEXTBOOK), 0.9),
        (f"{KNOWN}: CPU, of the floor's", cpu(KNOWN, FLOOR), 1.15),
        (f"{NEW}: CPU, of the floor's", cpu(NEW, FLOOR), 1.2),
        (f"{ALONE}: time, of the textbook's", time(ALONE, TEXTBOOK), 1.05),
        (f"{ALONE}: CPU, of the textbook's", cpu(ALONE, TEXTBOOK), 1.35),
        (f"{ALONE}: calls", of(ALONE).calls_in_all, 4),
        (
            f"{ALONE}: dollars, of the textbook's",
            dollars(ALONE, OURS) / dollars(ALONE, TEXTBOOK),
            1.4,
        ),
        (f"{KNOWN}: calls each", round(of(KNOWN).calls_in_all, 2), 2.2),
        (f"{NEW}: calls each", round(of(NEW).calls_in_all, 2), 5.3),
        (f"{KNOWN}: write units each", of(KNOWN).write_units, 2.3),
        (f"{NEW}: write units each", of(NEW).write_units, 5.3),
        (
            "cold start: time, of the bare handler's",
            median_ratio(starts[OURS]["first_batch"], starts["bare"]["first_batch"]),
            1.3,
        ),
        (
            "cold start: memory, of the bare handler's",
            median_ratio(starts[OURS]["peak_bytes"], starts["bare"]["peak_bytes"]),
            1.2,
        ),
        ("layers, MB", sum(cold["layer_bytes"].values()) / 1e6, 24),
        (f"{KNOWN}: dollars per million", dollars(KNOWN, OURS), 5),
        (f"{NEW}: dollars per million", dollars(NEW, OURS), 5),
        (
            f"{KNOWN}: dollars, of the textbook's",
            dollars(KNOWN, OURS) / dollars(KNOWN, TEXTBOOK),
            1,
        ),
        (f"{NEW}: dollars, of the textbook's", dollars(NEW, OURS) / dollars(NEW, TEXTBOOK), 1),
        ("a million items: calls, of a thousand's", last["calls"] / first["calls"], 1.1),
        ("a million items: time, of a thousand's", last["seconds"] / first["seconds"], 1.1),
    ]
    shown = Table(title="What it must show")
    for heading in ("", "measured", "at most", ""):
        shown.add_column(heading, justify="left" if not heading else "right")
    for what, measured, most in rows:
        reached = "reached" if measured <= most else "NOT reached"
        shown.add_row(what, f"{measured:.3f}", f"{most:.3f}", reached)
    return shown
