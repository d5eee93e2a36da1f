"""An operator invokes this to find and erase what is held about one phone number."""

from typing import TYPE_CHECKING, Any

from notifier.entrypoints.forget_recipient import forget_recipient
from notifier.settings import ForgetRecipientSettings, read
from notifier.telemetry import logger

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

_forget_recipient = forget_recipient(read(ForgetRecipientSettings))


@logger.inject_lambda_context(log_event=False)  # whatever the environment says: it has the number
def handler(event: dict[str, Any], context: "LambdaContext") -> dict[str, Any]:
    """Find, or erase; see `notifier.use_cases.forget_recipient` for what can be asked for."""
    return _forget_recipient.handle(event, context)
