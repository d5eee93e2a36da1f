"""What stops a command, as one line: what is wrong, and the way out."""

from typing import TYPE_CHECKING

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from functions.cli import words

if TYPE_CHECKING:
    from functions.cli.stack import Stack

_NOT_SIGNED_IN = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class CommandError(Exception):
    """The command cannot go on. The text says what is wrong, and what to do.

    Attributes:
        command: what to type next, if it is one command.
    """

    def __init__(self, problem: str, command: str = "") -> None:
        super().__init__(problem)
        self.command = command


def explain(error: BotoCoreError | ClientError, stack: "Stack | None" = None) -> str:
    """Return an error of AWS as a sentence with the way out.

    Args:
        error: what boto3 raised.
        stack: the one that the command works on, where there is one.
    """
    match error:
        case NoRegionError():
            return "no region: set AWS_REGION, or name it with --region, as in --region sa-east-1"
        case NoCredentialsError() | PartialCredentialsError():
            return "no credentials: sign in with the AWS CLI, or set AWS_PROFILE"
        case SSOError() | TokenRetrievalError():
            return "the sign-in has expired: `aws sso login`"
        case ProfileNotFound():
            return f"{error}: `aws configure list-profiles` names those that are"
        case EndpointConnectionError() if stack and stack.endpoint:
            return (
                f"the local stack does not answer at {stack.endpoint}: start it with `make run`,"
                f" or name a deployed one with {words.option('stack')}"
            )
        case ClientError():
            return _refusal(error, stack)
        case _:
            return str(error)


def _refusal(error: ClientError, stack: "Stack | None") -> str:
    code = error.response["Error"].get("Code", "")
    if code in _NOT_SIGNED_IN:
        return f"AWS refuses these credentials ({code}): sign in again with the AWS CLI"
    if stack and "does not exist" in str(error) and stack.name in str(error):
        if stack.endpoint:
            return f"{stack.endpoint} has no stack {stack.name} yet: wait until `make run` is ready"
        return (
            f"there is no stack {stack.name} in {stack.session.region_name}:"
            " name another stack, or another region with --region"
        )
    return str(error)
