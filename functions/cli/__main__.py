"""The command line: `python -m functions.cli COMMAND`, or `make COMMAND`."""

import signal

if __name__ == "__main__":
    # The imports take a second, in which Ctrl-C would show a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import logging
import sys

from botocore.exceptions import BotoCoreError, ClientError

from functions.cli import (
    bots,
    dead_letters,
    deployment,
    forgetting,
    ledger,
    notifications,
    output,
    publishing,
    status,
    templates,
    webhook,
)
from functions.cli.arguments import Command, UsageError, parse
from functions.cli.errors import CommandError, explain

ON_A_STACK = "[STACK=name] [ARGS=--help]"
COMMANDS = {
    "status": Command(status.run_status, status.arguments, ON_A_STACK),
    "publish": Command(
        publishing.run_publish, publishing.arguments, f"FILE=my-request.json {ON_A_STACK}"
    ),
    "notification": Command(
        notifications.run_notification,
        notifications.notification_arguments,
        f"ID=order-981 [BOT=name] {ON_A_STACK}",
    ),
    "cancel": Command(
        notifications.run_cancel,
        notifications.cancel_arguments,
        f"ID=order-981 [BOT=name] {ON_A_STACK}",
    ),
    "failures": Command(dead_letters.run_failures, dead_letters.failures_arguments, ON_A_STACK),
    "redrive": Command(dead_letters.run_redrive, dead_letters.redrive_arguments, ON_A_STACK),
    "pause": Command(bots.run_pause, bots.arguments, f"BOT=name {ON_A_STACK}"),
    "resume": Command(bots.run_resume, bots.arguments, f"BOT=name {ON_A_STACK}"),
    "check-bot": Command(bots.run_check_bot, bots.arguments, f"BOT=name {ON_A_STACK}"),
    "templates": Command(templates.run_templates, templates.arguments, f"[BOT=name] {ON_A_STACK}"),
    "rotate-webhook": Command(
        webhook.run_rotate_webhook, webhook.arguments, f"BOT=name {ON_A_STACK}"
    ),
    "forget": Command(forgetting.run_forget, forgetting.arguments, ON_A_STACK),
    "restore-ledger": Command(
        ledger.run_restore_ledger, ledger.restore_arguments, f"FROM=table {ON_A_STACK}"
    ),
    "republish": Command(
        ledger.run_republish,
        ledger.republish_arguments,
        f"SINCE=2026-11-26T00:00:00Z [FROM=key] {ON_A_STACK}",
    ),
    "deploy": Command(
        deployment.run_deploy,
        deployment.deploy_arguments,
        'STAGE=dev ALLOWED=+5531… [REGION=…] [ALARM_EMAIL=…] [YES=1] [ARGS="Name=value …"]',
    ),
    "undeploy": Command(
        deployment.run_undeploy, deployment.undeploy_arguments, "STAGE=dev [REGION=…] [YES=1]"
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 if all went well, 2 if it was not understood."""
    _show_warnings()
    try:
        options = parse(COMMANDS, arguments)
        return int(options.run(options))
    except UsageError as error:
        output.error(str(error), error.command)
        return 2
    except CommandError as error:
        output.error(str(error), error.command)
    except (BotoCoreError, ClientError) as error:
        output.error(explain(error))
    except (KeyboardInterrupt, EOFError):
        print("\nstopped", file=sys.stderr)
        return 130
    return 1


def _show_warnings() -> None:
    """Show the package's log lines, which say what AWS has refused."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Facts())
    handler.setLevel(logging.WARNING)
    logging.getLogger("notifier").handlers = [handler]


class _Facts(logging.Formatter):
    """Adds to a message what the package logs beside it."""

    def format(self, record: logging.LogRecord) -> str:
        facts = [str(getattr(record, name, "")) for name in ("error", "operation", "code", "codes")]
        return " ".join(filter(None, [f"{record.getMessage()}:", *facts]))


if __name__ == "__main__":
    # Explicitly: a shell lets what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
