"""Runs the faults at full size, in the simulated world and in the local stack; prints the results.

    make faults                       # everything; more than an hour on two cores
    make faults ARGS="outage storm"   # the rows with one of these words in their names

Ends with 1 if anything was lost, sent twice, or ended as it should not.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.faults import interleavings, local_crashes, local_storm, stories
from tests.faults.breaks import BREAKS
from tests.faults.deployed import deployed, killable_stack
from tests.faults.hardships import aws, network, refusals, slow_plans, templates, waits
from tests.faults.hardships.rows import Came
from tests.faults.letters import redrive
from tests.faults.local_crashes import Theatre
from tests.faults.local_outbox import MAX_SECONDS, load
from tests.faults.local_rate import drain
from tests.faults.local_webhook import flood
from tests.faults.long_runs import SHORTEST_BETWEEN_PROBES, backlog, outage
from tests.faults.storm import Storm, run
from tests.local.events import listening


@dataclass
class Row:
    """The result of one row.

    Attributes:
        summary: one sentence.
        broken: the invariants and bounds that did not hold.
        listed: of crash points, each story with its calls, the number of points, and the sends.
    """

    summary: str
    broken: list[str]
    listed: list[tuple[str, str, str, str]] = field(default_factory=list)
    seconds: float = 0.0


def _crash_points() -> Row:
    """Kill at every call of every story in the simulated world: before, under way, after."""
    row = Row("", [])
    count = 0
    for name, story in stories.STORIES.items():
        points = list(stories.points(story))
        broken = [
            f"{name}, {point}: {what}"
            for point in points
            for what in stories.killed_at(story, point)
        ]
        calls = [point.call for point in points if point.where == "before"]
        row.listed.append((name, _numbered(calls), str(len(points)), str(story.sent)))
        row.broken += broken
        count += len(points)
    row.summary = f"{count} points in {len(stories.STORIES)} stories, {len(row.broken)} with a loss"
    return row


def _local_crash_points() -> Row:
    """Kill at every call of the local stack's stories: before and after."""
    row = Row("", [])
    with (
        killable_stack(local_crashes.PARAMETERS) as (stack, killer),
        listening(stack.aws) as heard,
    ):
        theatre = Theatre(stack, killer, heard)
        points = theatre.points(*local_crashes.STORIES)
        came_of_it = []
        for point in theatre.kill_at(points):
            came_of_it.append(point)
            _say(f"  {len(came_of_it)} of {len(points)}: {point}")
    for name in local_crashes.STORIES:
        own = [point for point in came_of_it if point.story == name]
        calls = [point.call for point in own if point.side == "before"]
        most = max(point.sent for point in own)
        row.listed.append((name, _numbered(calls), str(len(own)), str(most)))
    row.broken = [f"{point}: {what}" for point in came_of_it for what in point.broken]
    most = max(point.sent for point in came_of_it)
    row.summary = f"{len(points)} kills, each sent at most {most} times, {len(row.broken)} losses"
    return row


def _interleavings() -> Row:
    row = Row("nothing lost, nothing twice, nothing too late, nothing back", [])
    try:
        interleavings.run(5000, steps=80)
    except AssertionError as error:
        row.broken = ["\n".join([str(error), *getattr(error, "__notes__", ())])]
        row.summary = "one that breaks something"
    return row


def _breaks() -> Row:
    missed = interleavings.overlooked(12_000)
    return Row(f"{len(BREAKS) - len(missed)} found", [f"not found: {name}" for name in missed])


def _storm(storm: Storm) -> Row:
    result = run(storm)
    broken = list(result.broken)
    if result.lost:
        broken.append(f"{result.lost} lost")
    if result.sent_twice:
        broken.append(f"{result.sent_twice} sent twice")
    summary = (
        f"{result.lost} lost, {result.sent_twice} sent twice, {len(broken)} ended wrong; "
        f"{result.killed} sandboxes killed, {sum(result.letters.values())} dead letters"
    )
    return Row(summary, broken)


def _local_storm() -> Row:
    with deployed(local_storm.PARAMETERS) as stack:
        result = local_storm.rage(stack, local_storm.Storm(5000, seconds=120, kills=40))
    summary = (
        f"{result.lost} lost, {result.sent_twice} sent twice, {result.wrong} ended wrong, "
        f"{result.undeserved} dead letters of {result.letters.total()} with a wrong reason; "
        f"{result.sent} sent, {result.killed} sandboxes killed, {result.struck} faults at BLiP"
    )
    return Row(summary, result.broken)


def _outage() -> Row:
    result = outage(10_000, 6, "refused")
    broken = list(result.broken)
    if result.letters or result.spent or result.shortest_between_probes < SHORTEST_BETWEEN_PROBES:
        broken.append("it cost something")
    summary = (
        f"{result.letters} dead letters, {result.spent} attempts spent, {result.probes} probes, "
        f"{result.shortest_between_probes:.1f} s between two at least, then drained in "
        f"{result.drained_in / 60:.0f} min, at most {result.most_per_second} in any second"
    )
    return Row(summary, broken)


def _backlog() -> Row:
    result = backlog(100_000)
    broken = list(result.broken)
    if result.throttled or result.share < 0.95:
        broken.append("not at the plan's rate")
    summary = (
        f"{result.rate:.1f} a second, {100 * result.share:.1f} % of the configured rate, at most "
        f"{result.most_per_second} in any second, {result.throttled} throttled"
    )
    return Row(summary, broken)


def _beside() -> Row:
    result = backlog(10_000, second=100)
    broken = list(result.broken)
    if len(result.second_waits) != 100 or max(result.second_waits) >= 10:
        broken.append("the second bot waited for the first")
    summary = (
        f"{result.second_waits[50]:.1f} s in the middle, {max(result.second_waits):.1f} s at most, "
        f"while the first had {100 * result.share:.1f} % of its configured rate"
    )
    return Row(summary, broken)


def _letters() -> Row:
    result = redrive(60_000, 20_000)
    broken = list(result.broken)
    if result.took > 900:
        broken.append("it took longer than a quarter of an hour")
    summary = (
        f"{result.listed} listed in {result.listed_in:.0f} s; {result.sent} put back and sent, "
        f"{result.sent_twice} twice, {result.redriven_twice} were put back twice by a kill in the "
        f"middle; {result.took:.0f} s in all, with the five minutes after the kill"
    )
    return Row(summary, broken)


def _local_backlog() -> Row:
    result = drain(2000)
    summary = (
        f"{result.rate:.1f} a second, {100 * result.share:.1f} % of the configured rate, at most "
        f"{result.most_per_second} in any second, {result.throttled} throttled; a second bot's "
        f"{len(result.second_waits)} waited {max(result.second_waits):.1f} s at most"
    )
    return Row(summary, result.broken)


def _local_outbox() -> Row:
    result = load(10, 60)
    broken = list(result.broken)
    if result.p95 > MAX_SECONDS:
        broken.append("later than two seconds")
    summary = (
        f"{result.events} status events of 600 notifications, from the ledger to the bus in "
        f"{median(result.delays):.1f} s, 95 % within {result.p95:.1f} s, at most "
        f"{result.delays[-1]:.1f} s; {result.repeated} published twice"
    )
    return Row(summary, broken)


def _hardship(*runs: Callable[[], Came]) -> Row:
    came = [run() for run in runs]
    return Row(
        "; ".join(each.summary for each in came), [each for one in came for each in one.broken]
    )


def _live_chat() -> Row:
    return _hardship(
        network.live_chat,
        *(partial(network.paced_chat, kind=kind) for kind in network.CHATS),
    )


def _webhook() -> Row:
    result = flood(10_000)
    summary = (
        f"{result.recorded} receipts recorded, {result.lost} lost, {result.let_in} let in of "
        f"{result.bad} bad ones"
    )
    return Row(summary, result.broken)


SIMULATED: dict[str, Callable[[], Row]] = {
    "storm, 100,000": lambda: _storm(Storm(100_000)),
    "storm without history or receipts, 100,000, if_unknown: fail": lambda: _storm(
        Storm(100_000, history=False, if_unknown="fail")
    ),
    "storm without history or receipts, 100,000, if_unknown: resend": lambda: _storm(
        Storm(100_000, history=False, if_unknown="resend")
    ),
    "backlog of 100,000 at 50 a second": _backlog,
    "a second bot beside a backlog of 10,000: its 100 waited": _beside,
    "outage of six hours, 10,000 waiting": _outage,
    "distance": lambda: _hardship(network.distance),
    "live chat": _live_chat,
    "poison": lambda: _hardship(refusals.poison, refusals.poison_alone, refusals.wrong_bot),
    "sporadic": lambda: _hardship(refusals.sporadic),
    "starvation": lambda: _hardship(aws.starvation),
    "lagging history": lambda: _hardship(refusals.lagging_history),
    "aws errors": lambda: _hardship(aws.aws_errors),
    "slow plan": lambda: _hardship(slow_plans.slow_plan),
    "waits": lambda: _hardship(waits.capped, waits.unreachable_by_marketing, waits.over_at_once),
    "templates": lambda: _hardship(templates.paused_template, templates.many_templates),
    "outbox": lambda: _hardship(aws.outbox),
    "letters": _letters,
    "5,000 interleavings of 80 steps": _interleavings,
    f"interleavings of code broken in {len(BREAKS)} ways": _breaks,
    "crash points": _crash_points,
}
LOCAL: dict[str, Callable[[], Row]] = {
    "deployed: a sandbox killed at every call out": _local_crash_points,
    "deployed: storm, 5,000": _local_storm,
    "deployed: 2,000 waiting, at 50 a second": _local_backlog,
    "deployed: status events, 10 notifications a second": _local_outbox,
    "deployed: 10,000 receipts at once, bad ones among them": _webhook,
}


def main(words: list[str]) -> int:
    """Run all rows, or those with one of these words in their names. Return 0 if none is broken."""
    logging.disable()
    rows: dict[str, Row] = {}
    simulated = list(_chosen(SIMULATED, words))
    # Each is single-threaded, so as many run in parallel as there are processors.
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in simulated:
            _say(f"{name}: under way")
        runs = {pool.submit(_timed, name): name for name in simulated}
        for done in as_completed(runs):
            rows[runs[done]] = _row(done)
            _say(f"{runs[done]}: {rows[runs[done]].summary}")
    with ThreadPoolExecutor(1) as pool_of_one:
        for name in _chosen(LOCAL, words):
            _say(f"{name}: under way")
            rows[name] = _row(pool_of_one.submit(_timed, name))
            _say(f"{name}: {rows[name].summary}")
    _print(rows)
    broken = [f"{name}: {problem}" for name, row in rows.items() for problem in row.broken]
    for problem in broken[:50]:
        _say(problem)
    return 1 if broken else 0


def _row(run: Future[Row]) -> Row:
    """Return the result of a run; a run that crashes affects no other."""
    crash = run.exception()
    return Row("it crashed", [repr(crash)]) if crash else run.result()


def _timed(name: str) -> Row:
    began = time.monotonic()
    row = (SIMULATED | LOCAL)[name]()
    row.seconds = time.monotonic() - began
    return row


def _chosen(rows: Iterable[str], words: list[str]) -> Iterable[str]:
    return (name for name in rows if not words or any(word in name for word in words))


def _print(rows: dict[str, Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("what", "result", "took", ""):
        table.add_column(title, overflow="fold")
    crashes = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("killed at every call of", "the calls", "points", "sent"):
        crashes.add_column(title, overflow="fold")
    for name in (*SIMULATED, *LOCAL):
        if row := rows.get(name):
            held = "[red]✗[/]" if row.broken else "[green]✓[/]"
            table.add_row(name, row.summary, f"{row.seconds:.0f} s", held)
            where = "deployed: " if name in LOCAL else ""
            for story, *cells in row.listed:
                crashes.add_row(f"{where}{story}", *cells)
    console.print(table)
    if crashes.row_count:
        console.print()
        console.print(crashes)


def _numbered(calls: Iterable[str]) -> str:
    return ", ".join(f"{number} {call}" for number, call in enumerate(calls, 1))


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
