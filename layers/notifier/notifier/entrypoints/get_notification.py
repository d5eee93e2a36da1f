"""Builds the function GetNotification: answers producers over the HTTP API, which authorises them.

The resolver checks what comes in and what goes out against the models below; `make schemas` writes
the OpenAPI document from them.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from pydantic import BaseModel, Field

from notifier.aws.notifications import DynamoDbNotifications
from notifier.aws.refusals import DynamoDbRefusals
from notifier.aws.table import Table
from notifier.contract.request import ID_PATTERN
from notifier.domain.bots import NAME_PATTERN
from notifier.domain.failures import Reason
from notifier.domain.ledger_entries import NotificationDetails
from notifier.domain.status import Status
from notifier.entrypoints.environment import AWS, SystemClock, boto3
from notifier.settings import GetNotificationSettings
from notifier.use_cases.get_notification import Notifications, NotKnown, TooLate

if TYPE_CHECKING:
    from aws_lambda_powertools.event_handler.openapi.types import OpenAPIResponse
    from aws_lambda_powertools.utilities.typing import LambdaContext

ROUTE = "/notifications/<id>"
# What is right where a parameter breaks its pattern.
_RULES = {
    "id": "must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -",
    "bot": "must be 1 to 64 of A-Z a-z 0-9 _ -",
}

Id = Annotated[str, Path(pattern=ID_PATTERN, description="The request's id.")]
Bot = Annotated[str, Query(pattern=NAME_PATTERN, description="The request's bot.")]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Change(BaseModel):
    """One change of status.

    Attributes:
        status: what it became.
        generation: which round of sending, one more with each redrive; 0 before the first.
        time: when, in UTC.
        reason: why it ended without delivery; else null.
    """

    status: Status
    generation: int
    time: Moment
    reason: Reason | None


class NotificationAnswer(BaseModel):
    """How it goes with a notification. Holds no parameter, and of the number four digits at most.

    Attributes:
        id: the request's.
        bot: the request's.
        status: where it stands; claimed, sending, retrying, unknown and waiting are under way.
        reason: why it ended without delivery, as in events/README.md; else null.
        code: BLiP's or WhatsApp's, where there is one.
        attempts: how often it was tried in this generation.
        generation: which round of sending, one more with each redrive; 0 before the first.
        timeline: the changes of status, oldest first.
        template: its name; null before the request has come, or if the recipient was forgotten.
        category: of the template: MARKETING, UTILITY or AUTHENTICATION; null if BLiP has not said.
        recipient: the number's last four digits; null as the template is.
        metadata: the request's.
        correlation_id: the request's.
        wakes_at: until when it waits before it is sent again, in UTC; null where it does not.
        created_at: when it was taken up, in UTC; null where the recipient was forgotten.
        updated_at: when something last changed, in UTC.
    """

    id: str
    bot: str
    status: Status
    reason: Reason | None
    code: int | None
    attempts: int
    generation: int
    timeline: list[Change]
    template: str | None
    category: str | None
    recipient: str | None
    metadata: dict[str, str]
    correlation_id: str | None
    wakes_at: Moment | None
    created_at: Moment | None
    updated_at: Moment


class GetNotification:
    """Takes an HTTP request of the API and answers it: with JSON, or with one line of text."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications
        self.resolver = APIGatewayHttpResolver(enable_validation=True)
        problems: dict[type[Exception], HTTPStatus] = {
            BadRequestError: HTTPStatus.BAD_REQUEST,
            NotFoundError: HTTPStatus.NOT_FOUND,
            NotKnown: HTTPStatus.NOT_FOUND,
            TooLate: HTTPStatus.CONFLICT,
        }
        for kind, status in problems.items():
            self.resolver.exception_handler(kind)(partial(_problem, status))
        self.resolver.exception_handler(RequestValidationError)(_broken)
        self.resolver.get(
            ROUTE,
            operation_id="getNotification",
            summary="How does it go with a notification?",
            responses=_answers(
                "How it goes.",
                {400: "The id or the bot cannot be one.", 404: "Nothing is known of it."},
            ),
        )(self._get)
        self.resolver.delete(
            ROUTE,
            operation_id="cancelNotification",
            summary="Take a notification back that has not gone out. Twice is as good as once.",
            responses=_answers(
                "It is cancelled; its request is not sent when it comes.",
                {
                    400: "The id or the bot cannot be one.",
                    409: "Too late: it has gone out, may have, may be doing so, or has ended.",
                },
            ),
        )(self._cancel)

    def handle(self, event: Mapping[str, Any], context: "LambdaContext") -> dict[str, Any]:
        """Answer one request of the HTTP API."""
        # A client may encode what needs no encoding in a path, a colon for one.
        return self.resolver.resolve({**event, "rawPath": unquote(event["rawPath"])}, context)

    def _get(self, id: Id, bot: Bot = "default") -> NotificationAnswer:  # noqa: A002 - as in the URL
        self._refuse_other_parameters()
        return _answer(self._notifications.get(bot, id))

    def _cancel(self, id: Id, bot: Bot = "default") -> NotificationAnswer:  # noqa: A002 - as in the URL
        self._refuse_other_parameters()
        return _answer(self._notifications.cancel(bot, id))

    def _refuse_other_parameters(self) -> None:
        """A misspelt `bot` must not vanish: another bot's notification would be meant."""
        if self.resolver.current_event.query_string_parameters.keys() - {"bot"}:
            raise BadRequestError("the query has a parameter that is not `bot`")


def _answers(good: str, problems: dict[int, str]) -> "dict[int, OpenAPIResponse]":
    """Describe the answers of a route: the model, or one line."""
    described: dict[int, OpenAPIResponse] = {
        status: {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
        for status, text in problems.items()
    }
    model: OpenAPIResponse = {
        "description": good,
        "content": {"application/json": {"model": NotificationAnswer}},
    }
    return {200: model} | described


def _problem(status: HTTPStatus, problem: Exception) -> Response[str]:
    return Response(status, "text/plain; charset=utf-8", f"{problem}\n")


def _broken(problem: RequestValidationError) -> Response[str]:
    names = [str(error["loc"][-1]) for error in problem.errors()]
    sentence = "; ".join(f"{name}: {_RULES[name]}" for name in names)
    return _problem(HTTPStatus.BAD_REQUEST, BadRequestError(sentence))


def _answer(details: NotificationDetails) -> NotificationAnswer:
    return NotificationAnswer(
        id=details.notification_id,
        bot=details.bot,
        status=details.status,
        reason=details.reason,
        code=details.code,
        attempts=details.attempts,
        generation=details.generation,
        timeline=[
            Change(
                status=change.status,
                generation=change.generation,
                time=_moment(change.at),
                reason=change.reason,
            )
            for change in details.timeline
        ],
        template=details.template,
        category=details.category,
        recipient=details.recipient,
        metadata=details.metadata,
        correlation_id=details.correlation_id,
        wakes_at=None if details.wakes_at is None else _moment(details.wakes_at),
        created_at=None if details.created_at is None else _moment(details.created_at),
        updated_at=_moment(details.updated_at),
    )


def _moment(epoch_seconds: float) -> str:
    return datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds")


def get_notification(settings: GetNotificationSettings) -> GetNotification:
    """Build what the function needs."""
    table = Table(boto3.client("dynamodb", config=AWS), settings.ledger_table)
    ledger = DynamoDbNotifications(table, SystemClock.now)
    return GetNotification(Notifications(ledger, DynamoDbRefusals(table, SystemClock.now)))
