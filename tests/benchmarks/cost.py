"""What a million notifications cost, and what a day's volume needs, from the last `make bench`.

    make cost

Calls, units and bytes are the counted ones, times the measured ones. The batches are those with
BLiP at 100 ms. Left out: the free tiers, data transfer, and WhatsApp's own price, the largest.
"""

from collections.abc import Sequence
from math import ceil

from rich.console import Console
from rich.table import Table

from notifier.aws.waiting_ledger import SHARDS
from notifier.use_cases.sync_templates import RENEW_SECONDS
from tests.benchmarks.figures import Figures, last_run
from tests.benchmarks.lab import AFTERWARDS, OURS, TEXTBOOK
from tests.benchmarks.quota import share_of
from tests.template.transformed import load

# Dollars. List prices of us-east-1 from https://aws.amazon.com/SERVICE/pricing, November 2025.
# Other regions differ; sa-east-1 is up to a half dearer.
PRICES = {
    "sqs request": 0.40e-6,
    "lambda request": 0.20e-6,
    "lambda GB-second, arm64": 0.0000133334,
    "dynamodb write unit, on demand": 0.625e-6,
    "dynamodb read unit, on demand": 0.125e-6,
    "dynamodb GB-month, with point-in-time recovery": 0.25 + 0.20,
    "eventbridge custom event": 1.00e-6,
    "http api request": 1.00e-6,
    "cloudwatch logs GB": 0.50,
}
MILLION = 1_000_000
SENDING = "SendNotificationFunction"
DAY = 86_400

# START, END and REPORT.
PLATFORM_LOG_BYTES = 350
KEPT_DAYS = 45
# DynamoDB counts so much for each item beside its attributes.
ITEM_OVERHEAD_BYTES = 100
WRITE_UNIT_BYTES, READ_UNIT_BYTES = 1024, 4096
RECEIPTS_EACH = 4  # accepted, dispatched, received, consumed
STATUS_EVENTS_EACH = 3  # sent, received, consumed

PLAN = 50 * 0.90
MAXIMUM_CONCURRENCY = 5
# In their own unit per second; the account's defaults in us-east-1, November 2025.
QUOTAS = {
    "BLiP's plan, 50 a second less 10 %, per number": PLAN,
    f"MaximumConcurrency at its default, {MAXIMUM_CONCURRENCY}": MAXIMUM_CONCURRENCY,
    "Lambda: 1,000 at a time": 1000,
    "DynamoDB: 4,000 units of a new table on demand": 4000,
    "DynamoDB: 1,000 units of the bot's item, per number": 1000,
    "EventBridge: 10,000 PutEvents": 10_000,
    "HTTP API: 10,000 requests": 10_000,
}


def memory_mb(function: str) -> int:
    """Return the MemorySize that the template gives a function."""
    return int(load().properties(function)["MemorySize"])


def billed_seconds(figures: Figures, memory_mb: int) -> float:
    """Estimate how long one invocation takes where the processor is a fraction of ours.

    A little too long: other threads wait while one works. `make bench` measures it for some sizes.
    """
    cpu = figures.cpu * figures.size
    return max(0.0, figures.p50 - cpu) + cpu / share_of(memory_mb)


def lambda_dollars(invocations: float, billed_seconds: float, memory_mb: int) -> float:
    """Return the dollars for a million times so many invocations, of so many seconds in all."""
    gb_seconds = billed_seconds * memory_mb / 1024
    return MILLION * (
        invocations * PRICES["lambda request"] + gb_seconds * PRICES["lambda GB-second, arm64"]
    )


def _function(figures: Figures, memory_mb: int) -> dict[str, float]:
    """Return the dollars per million of what a function handles: itself, its calls, its logs."""
    calls = figures.calls
    queue = sum(calls.get(name, 0) for name in ("SendMessage", "ChangeMessageVisibilityBatch"))
    invocation = lambda_dollars(1, billed_seconds(figures, memory_mb), memory_mb)
    logged = figures.logged_bytes + PLATFORM_LOG_BYTES / figures.size
    write, read = (PRICES[f"dynamodb {unit} unit, on demand"] for unit in ("write", "read"))
    return {
        "SQS": MILLION * queue * PRICES["sqs request"],
        "Lambda": invocation / figures.size,
        "DynamoDB writes": MILLION * figures.write_units * write,
        "DynamoDB reads": MILLION * figures.read_units * read,
        "logs": MILLION * logged * PRICES["cloudwatch logs GB"] / 1e9,
    }


def _polled(size: int) -> float:
    """Return the dollars per million messages for the queue: put on it, received, deleted."""
    return MILLION * (1 + 2 / size) * PRICES["sqs request"]


def sending(figures: Figures) -> dict[str, float]:
    """Return the dollars per million notifications of the send path, by service."""
    dollars = _function(figures, memory_mb(SENDING))
    dollars["SQS"] += _polled(figures.size)
    if figures.competitor == OURS:
        gigabytes = MILLION * (figures.largest_item + ITEM_OVERHEAD_BYTES) / 1e9
        price = PRICES["dynamodb GB-month, with point-in-time recovery"]
        dollars[f"ledger, {KEPT_DAYS} days"] = gigabytes * KEPT_DAYS / 30 * price
    return dollars


def receipts(received: Figures, recorded: Figures) -> float:
    """Return the dollars per million notifications for their receipts, without status events."""
    functions = list(AFTERWARDS.values())
    one = sum(
        sum(_function(figures, memory_mb(function)).values())
        for figures, function in zip((received, recorded), functions, strict=False)
    )
    api = MILLION * PRICES["http api request"]
    # Putting it on the queue is counted among the calls of the function that does.
    queue = _polled(recorded.size) - MILLION * PRICES["sqs request"]
    return RECEIPTS_EACH * (one + api + queue)


def publishing(published: Figures) -> float:
    """Return the dollars per million status events. Lambda reads the stream for nothing."""
    function = sum(_function(published, memory_mb("PublishStatusEventsFunction")).values())
    return function + MILLION * PRICES["eventbridge custom event"]


def waiting(figures: Figures) -> float:
    """Return the dollars per million waits in the ledger, without the sends that follow them.

    Each is two writes of the item and of its index, one read, and a tenth of a call to put it on
    the queue. The functions' own time is some cents.
    """
    size = figures.largest_item + ITEM_OVERHEAD_BYTES
    writes, reads = 2 * (ceil(size / WRITE_UNIT_BYTES) + 1), 0.5 * ceil(size / READ_UNIT_BYTES)
    return MILLION * (
        writes * PRICES["dynamodb write unit, on demand"]
        + reads * PRICES["dynamodb read unit, on demand"]
        + PRICES["sqs request"] / 10
    )


def looking() -> float:
    """Return the dollars a month for looking each minute whether a wait is over."""
    queries = 30 * 24 * 60 * len(SHARDS)
    return queries * 0.5 * PRICES["dynamodb read unit, on demand"]


def syncing(templates: int) -> float:
    """Return the dollars a month for keeping the registry of a bot with so many templates.

    Each is read every quarter of an hour, and written once in RENEW_SECONDS; both are of less than
    a kilobyte. Lambda's time is within its free tier.
    """
    month = 30 * DAY
    reads = templates * month / (15 * 60) * 0.5 * PRICES["dynamodb read unit, on demand"]
    writes = templates * month / RENEW_SECONDS * PRICES["dynamodb write unit, on demand"]
    return reads + writes


def _prices(batches: Sequence[Figures], afterwards: Sequence[Figures]) -> Table:
    shown = Table(title="Dollars per million notifications")
    shown.add_column("")
    columns = [sending(figures) for figures in batches]
    for figures in batches:
        shown.add_column(f"{figures.competitor}\n{figures.case}", justify="right")
    names = max(columns, key=len)
    for name in names:
        shown.add_row(name, *(f"{dollars.get(name, 0):.2f}" for dollars in columns))
    shown.add_section()
    shown.add_row("send path", *(f"{sum(dollars.values()):.2f}" for dollars in columns))
    shown.add_section()
    received, recorded, one, ten = afterwards
    extra = {
        "receipts, four each": (receipts(received, recorded),) * 2,
        f"status events, {STATUS_EVENTS_EACH} each": tuple(
            STATUS_EVENTS_EACH * publishing(published) for published in (one, ten)
        ),
    }
    for name, dollars in extra.items():
        # What comes alone is published alone.
        cells = [f"{dollars[min(1, f.size - 1)]:.2f}" for f in batches]
        shown.add_row(
            name,
            *(
                cell if f.competitor == OURS else "-"
                for cell, f in zip(cells, batches, strict=True)
            ),
        )
    return shown


def limits(figures: Figures, numbers: int) -> dict[str, float]:
    """Return each quota as the notifications per second at which it is reached."""
    per_second_of_one = billed_seconds(figures, memory_mb(SENDING)) / figures.size
    ledger_units = figures.write_units
    # Of the writes, two per batch at most go to the bot's item.
    use = dict(
        zip(
            QUOTAS,
            (
                1 / numbers,
                per_second_of_one,
                per_second_of_one,
                ledger_units,
                2 / figures.size / numbers,
                STATUS_EVENTS_EACH / 10,
                RECEIPTS_EACH,
            ),
            strict=True,
        )
    )
    return {name: quota / use[name] for name, quota in QUOTAS.items()}


def _volumes(figures: Figures) -> Table:
    shown = Table(title=f"What a day's volume needs ({figures.case}; spread over the whole day)")
    for heading in (
        "a day", "numbers", "a second", "of their plans", "sandboxes", "DynamoDB WCU/s",
        "receipts/s", "reached first, beside the plan",
    ):  # fmt: skip
        shown.add_column(heading, justify="right")
    for numbers in (1, 10):
        for millions in (1, 10, 100):
            rate = millions * MILLION / DAY
            first, *others = limits(figures, numbers).items()
            share = rate / first[1]
            name, at = min(others, key=lambda other: other[1])
            reached = f"{name}: at {at:,.0f}/s"
            if share > 1:
                needed = -(-rate // PLAN)
                reached = f"more than the plans let out: {needed:.0f} numbers"
            shown.add_row(
                f"{millions} M",
                str(numbers),
                f"{rate:,.0f}",
                f"{100 * share:.0f} %",
                f"{rate * billed_seconds(figures, memory_mb(SENDING)) / figures.size:.1f}",
                f"{rate * figures.write_units:,.0f}",
                f"{rate * RECEIPTS_EACH:,.0f}",
                reached,
            )
        shown.add_section()
    return shown


def main() -> None:
    console = Console(width=165)
    batches = [
        figures
        for figures in last_run("batches")
        if figures.latency and figures.competitor in {OURS, TEXTBOOK}
    ]
    console.print(_prices(batches, last_run("afterwards")))
    console.print(
        "Without receipts a notification ends at `sent`: that it was not delivered stays unknown,\n"
        "and what WhatsApp's rate limits hold up is not sent again. Without status events\n"
        "upstream does not hear how it ended.\n"
    )
    known = next(f for f in batches if (f.case, f.competitor) == ("ten known", OURS))
    console.print(
        f"What waits to be sent again costs {waiting(known):.2f} dollars per million waits, beside "
        f"the next send;\nlooking for it, {looking():.2f} dollars a month. The registry costs "
        f"{syncing(50):.2f} dollars a month for 50 templates,\n{syncing(6000):.2f} for 6,000.\n"
    )
    console.print(_volumes(known))
    lines = [
        f"  {at:>9,.0f}  {name}"
        for name, at in sorted(limits(known, 1).items(), key=lambda q: q[1])
    ]
    console.print("Quotas, as notifications a second of one number:", *lines, sep="\n")


if __name__ == "__main__":
    main()
