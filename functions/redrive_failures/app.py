"""An operator invokes this to see dead letters, and to put them back on the requests queue."""

from typing import TYPE_CHECKING, Any

from notifier.runtime.redriving import redrive_failures
from notifier.settings import RedriveFailuresSettings, read
from notifier.telemetry import logger, metrics

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_redrive_failures = redrive_failures(read(RedriveFailuresSettings))


@logger.inject_lambda_context
@metrics.log_metrics
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """List or redrive; see `notifier.redrive` for what can be asked for."""
    return _redrive_failures.handle(event, context)
