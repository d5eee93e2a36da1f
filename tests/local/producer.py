"""What an application of one's own needs to use the local stack that `make run` keeps up.

`eval "$(make env)"` puts it into a shell's environment.
"""

import signal

if __name__ == "__main__":
    # It has nothing to end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import socket
import sys
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

if __name__ == "__main__":
    # The package is installed nowhere: its place is the layer.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "layers/notifier"))

from tests.local.aws import REGION, Aws
from tests.local.machine import HOST
from tests.local.stack import DEFAULT_PORT_BASE, STACK


def exports(endpoint: str, requests_queue: str) -> list[str]:
    """Return lines for a shell: endpoint, region, made-up credentials, the queue's URL."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        # The AWS CLI and the SDK for JavaScript read AWS_REGION, boto3 reads the other.
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        # By the endpoint's own address: the local AWS calls itself by a name.
        "REQUESTS_QUEUE_URL": f"{endpoint}/{requests_queue.split('/', 3)[3]}",
    }
    return [f"export {name}={value}" for name, value in variables.items()]


def running_aws(description: str | None) -> Aws:
    """Return clients for the local stack that is up, on the port that the command line names.

    Exits with a sentence for a person if none is up.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--port-base",
        metavar="N",
        type=int,
        default=DEFAULT_PORT_BASE,
        help="where the local AWS listens (default %(default)s)",
    )
    port = parser.parse_args().port_base
    aws = Aws(f"http://{HOST}:{port}")
    try:
        # boto3 would try for seconds.
        socket.create_connection((HOST, port)).close()
        aws.stacks.describe_stacks(StackName=STACK)
    except (OSError, BotoCoreError, ClientError):
        sys.exit(f"error: no local stack on port {port}: start it with `make run`")
    return aws


def main() -> None:
    """Print the lines."""
    aws = running_aws(__doc__)
    resource = aws.stacks.describe_stack_resource(
        StackName=STACK, LogicalResourceId="RequestsQueue"
    )
    queue = resource["StackResourceDetail"]["PhysicalResourceId"]
    print("\n".join(exports(aws.url, queue)))


if __name__ == "__main__":
    main()
