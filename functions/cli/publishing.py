"""`publish`: requests from files, checked against the contract and put on the queue."""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from functions.cli import bots, following, output
from functions.cli.arguments import json_argument
from functions.cli.errors import CommandError, explain
from functions.cli.stack import Json, Resources, Stack, on_stack, stack_arguments
from notifier.aws.queues import in_batches
from notifier.contract.parse import Parsed, parse
from notifier.contract.problems import InvalidRequest

# How often SQS is asked to take a message, and the first of the waits in between, which double.
TRIES = 5
FIRST_WAIT_SECONDS = 0.2
# So many ids are shown; --json has all.
MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Message:
    """A request to be published.

    Attributes:
        source: its file, and the line in it if it is one of many.
        body: exactly what is published.
        content: the request, or what a dead letter would say of one that breaks the contract.
    """

    source: str
    body: str
    content: Parsed | InvalidRequest

    @property
    def notification_id(self) -> str | None:
        """The request's id; None if it is not readable."""
        if isinstance(self.content, Parsed):
            return self.content.request.id
        return self.content.notification_id

    @property
    def bot(self) -> str:
        """The request's bot, which is the group that SQS's fair queues go by."""
        if isinstance(self.content, Parsed):
            return self.content.request.bot
        return self.content.bot or "default"


@dataclass(frozen=True, slots=True)
class Published:
    """A message that SQS took, or did not take.

    Attributes:
        record_id: SQS's id of it; None if it was not taken.
        refusal: why it was not taken; None if it was.
    """

    message: Message
    record_id: str | None = None
    refusal: str | None = None


def read(files: Iterable[Path]) -> list[Message]:
    """Read requests: each file is one, each line of a `.jsonl` file is one.

    Raises:
        CommandError: a file cannot be read, or holds nothing.
    """
    messages: list[Message] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CommandError(f"there is no file {file}") from None
        except UnicodeDecodeError:
            raise CommandError(f"{file} is not UTF-8: save it as such") from None
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}") from None
        if not text.strip():
            raise CommandError(f"{file} is empty: events/01-text.json is a request to start from")
        if file.suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    messages.append(_message(f"{file}:{number}", line))
        else:
            messages.append(_message(str(file), text))
    return messages


def _message(source: str, body: str) -> Message:
    try:
        return Message(source, body, parse(body))
    except InvalidRequest as problem:
        return Message(source, body, problem)


def publish(
    stack: Resources, messages: Sequence[Message], progress: Callable[[int], None] = lambda _: None
) -> list[Published]:
    """Put messages on the queue in batches of ten, and those again that SQS refused for now.

    Args:
        stack: where to.
        messages: in their order.
        progress: called with how many SQS has taken so far.

    Raises:
        CommandError: SQS refused a whole batch, or the command was interrupted. The text says how
            many were published.
    """
    sqs, queue = stack.client("sqs"), stack.physical_id("RequestsQueue")
    results: dict[int, Published] = {}
    waiting = list(enumerate(messages))
    for number in range(TRIES):
        if not waiting:
            break
        if number:
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (number - 1))
        again = []
        for batch in in_batches(waiting, lambda one: one[1].body):
            entries = [_entry(position, message) for position, message in batch]
            try:
                answer = sqs.send_message_batch(QueueUrl=queue, Entries=entries)
            except (BotoCoreError, ClientError, KeyboardInterrupt) as error:
                taken = sum(one.record_id is not None for one in results.values())
                if not taken:
                    raise
                raise _broken_off(error, taken, len(messages)) from error
            for entry in answer.get("Successful", []):
                position = int(entry["Id"])
                results[position] = Published(messages[position], record_id=entry["MessageId"])
            for entry in answer.get("Failed", []):
                position = int(entry["Id"])
                why = entry.get("Message") or entry["Code"]
                results[position] = Published(messages[position], refusal=why)
                if not entry["SenderFault"]:
                    again.append((position, messages[position]))
            progress(sum(one.record_id is not None for one in results.values()))
        waiting = again
    return [results[position] for position in range(len(messages))]


def _entry(position: int, message: Message) -> Json:
    return {
        "Id": str(position),
        "MessageBody": message.body,
        "MessageGroupId": message.bot,
    }


def _broken_off(error: BaseException, taken: int, number: int) -> CommandError:
    """Return what to raise when publishing cannot go on, though some are published."""
    why = explain(error) if isinstance(error, BotoCoreError | ClientError) else "stopped"
    return CommandError(
        f"{why}. {taken} of {number} were published: publish the file again, because the same id"
        " is the same notification and goes out once"
    )


@on_stack
def run_publish(stack: Stack, options: argparse.Namespace) -> int:
    """Check requests against the contract and put them on the queue."""
    messages = read(options.files)
    if not options.as_is:
        _check(stack, messages, options)
    with output.bar("published", len(messages)) as progress:
        published = publish(stack, messages, progress)
    if options.wait:
        return following.show(stack, published, as_json=options.json)
    if options.json:
        output.print_json([_as_json(one) for one in published])
    else:
        _show(stack, published)
    return 1 if any(one.refusal for one in published) else 0


def _check(stack: Stack, messages: list[Message], options: argparse.Namespace) -> None:
    """Show what a dead letter would say of each request that breaks the contract.

    Raises:
        CommandError: there is one.
    """
    broken = [(one, one.content) for one in messages if isinstance(one.content, InvalidRequest)]
    if not broken:
        return
    if options.json:
        output.print_json([_problem_as_json(message, problem) for message, problem in broken])
    else:
        for message, problem in broken[:MAX_SHOWN]:
            output.block(f"{message.source}: {problem.reason}", _sentences(problem))
            output.say()
        if len(broken) > MAX_SHOWN:
            output.say(f"… and {len(broken) - MAX_SHOWN:,} more")
            output.say()
    files = " ".join(map(str, options.files))
    some = f"{len(broken)} of {len(messages)} requests break"
    raise CommandError(
        f"nothing was published: {'the request breaks' if len(messages) == 1 else some} the"
        " contract (events/README.md). Fix it, or publish it as it is:",
        stack.command("publish", f"FILE={files}", ["--as-is"]),
    )


def _sentences(problem: InvalidRequest) -> dict[str, str]:
    """Return what is wrong with a request, by field."""
    if not problem.fields:
        return {"problem": problem.detail}
    return {one.field or "the request": one.problem for one in problem.fields}


def _show(stack: Stack, published: list[Published]) -> None:
    taken = [one.message for one in published if one.record_id]
    output.say(f"{output.plural(len(taken), 'request')} published:")
    for message in taken[:MAX_SHOWN]:
        output.say_exactly(f"  {message.notification_id or f'{message.source}, without an id'}")
    if len(taken) > MAX_SHOWN:
        output.say(f"  … and {len(taken) - MAX_SHOWN:,} more")
    for one in published:
        if one.refusal:
            output.say(f"SQS did not take {one.message.source}: {one.refusal}")
    for name in dict.fromkeys(message.bot for message in taken):
        bots.warn(stack, name)
    output.say()
    named = next((message for message in taken if message.notification_id), None)
    if named:
        bot = "" if named.bot == "default" else f" BOT={named.bot}"
        output.next_step(
            "See what becomes of it",
            stack.command("notification", f"ID={named.notification_id}{bot}"),
        )
    else:
        output.next_step("See what becomes of it", stack.command("failures", "", ["--each"]))


def _as_json(one: Published) -> Json:
    return {
        "source": one.message.source,
        "id": one.message.notification_id,
        "bot": one.message.bot,
        "published": one.record_id is not None,
        "refusal": one.refusal,
    }


def _problem_as_json(message: Message, problem: InvalidRequest) -> Json:
    return _as_json(Published(message)) | {
        "reason": problem.reason,
        "detail": problem.detail,
        "fields": [asdict(one) for one in problem.fields],
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `publish` takes."""
    add = parser.add_argument
    help_ = "a .json file is one request, every line of a .jsonl file is one"
    add("files", nargs="+", type=Path, metavar="FILE", help=help_)
    add("--as-is", action="store_true", help="publish also what breaks the contract")
    add("--wait", action="store_true", help="show what becomes of them, until each has ended")
    json_argument(parser)
    stack_arguments(parser)
