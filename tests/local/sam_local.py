"""Runs `sam local` against the running local stack, with any of its arguments.

    make run                                                          # in another terminal
    .venv/bin/python -m tests.local.sam_local invoke SendNotificationFunction \\
        -e events/lambda/send_notification.json

It needs a container engine on Linux. `sam local` gives a function no variables but those of the
template, with the logical ids for names, and a network in which 127.0.0.1 is the container itself.
So this hands it the deployed template with what the deployed functions were told, and lets the
containers, and nobody else, reach the local AWS and the simulator while it runs.

What is in the variable SAM_LOCAL_OPTIONS is handed to each `sam local` as further options:
`--skip-pull-image` where the engine has the image but cannot pull it, `--docker-network host` where
it has no network of its own.
"""

import argparse
import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    # The package is installed nowhere: its place is the layer.
    sys.path.insert(0, str(ROOT / "layers/notifier"))

from tests.local.aws import Aws  # noqa: E402
from tests.local.machine import HOST, STATE  # noqa: E402
from tests.local.stack import DEFAULT_PORT_BASE, STACK  # noqa: E402

WRITTEN = STATE / "sam-local.yaml"
INVOCATIONS = (
    "arn:aws:apigateway:us-east-1:lambda:path/2015-03-31/functions/${{{}.Arn}}/invocations"
)
# This machine as containers know it: the one name of it that a bot may have without TLS.
FROM_CONTAINERS = "host.docker.internal"
# The address under which containers see this machine. SAM CLI brings the engine's library along.
ASK_FOR_GATEWAY = """
import docker
print(docker.from_env().networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"])
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.local.sam_local")
    parser.add_argument("--port-base", type=int, default=DEFAULT_PORT_BASE, metavar="N")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="invoke FUNCTION -e FILE …")
    options = parser.parse_args()
    answer = subprocess.run(  # noqa: S603
        [ROOT / ".venv-sam/bin/python", "-c", ASK_FOR_GATEWAY],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        print(f"no container engine: {answer.stderr.splitlines()[-1]}", file=sys.stderr)
        return 1
    gateway = answer.stdout.strip()
    if not options.arguments:
        parser.error("what shall `sam local` do?")
    aws = Aws(f"http://{HOST}:{options.port_base}")
    try:
        aws.stacks.describe_stacks(StackName=STACK)
    except (BotoCoreError, ClientError) as error:
        print(f"no local stack: is `make run` up? {error}", file=sys.stderr)
        return 1
    built = yaml.safe_load((STATE / "build/local.yaml").read_text())
    WRITTEN.write_text(yaml.safe_dump(_as_deployed(built, aws, gateway), sort_keys=False))
    return asyncio.run(
        _run(options.arguments, gateway, ports=(options.port_base, options.port_base + 1))
    )


def _as_deployed(template: dict[str, Any], aws: Aws, gateway: str) -> dict[str, Any]:
    """Return a built template in CloudFormation's words, with what deployed functions get.

    In SAM's words `sam local start-api` looks for SAM's kind of API only.
    """
    for name, resource in template["Resources"].items():
        properties = resource["Properties"]
        match resource["Type"]:
            case "AWS::Serverless::LayerVersion":
                folder = str(STATE / "build" / properties["ContentUri"])
                resource |= {
                    "Type": "AWS::Lambda::LayerVersion",
                    "Properties": {"Content": folder},
                }
            case "AWS::Serverless::Function":
                function = template["Globals"]["Function"] | properties
                kept = ("Handler", "Runtime", "Layers", "MemorySize", "Timeout")
                resource |= {
                    "Type": "AWS::Lambda::Function",
                    "Properties": {
                        **{one: function[one] for one in kept},
                        "Code": str(STATE / "build" / properties["CodeUri"]),
                        **_as_told(name, aws, gateway),
                    },
                }
            case "AWS::ApiGatewayV2::Integration":
                # Nor does it know which function an alias belongs to.
                called = properties["IntegrationUri"]["Ref"].removesuffix(".Alias")
                properties["IntegrationUri"] = {"Fn::Sub": INVOCATIONS.format(called)}
            case _:
                pass
    del template["Globals"], template["Transform"]
    return template


def _as_told(function: str, aws: Aws, gateway: str) -> dict[str, Any]:
    """Return what the deployed function was told, in a form that holds inside a container."""
    detail = aws.stacks.describe_stack_resource(StackName=STACK, LogicalResourceId=function)
    deployed = aws.functions.get_function_configuration(
        FunctionName=detail["StackResourceDetail"]["PhysicalResourceId"]
    )
    variables = deployed["Environment"]["Variables"]
    if "BOTS_SECRET_ARN" in variables:
        variables["BOTS_SECRET_ARN"] = _reachable(variables["BOTS_SECRET_ARN"], aws)
    variables["AWS_ENDPOINT_URL"] = aws.url.replace(HOST, gateway)
    return {
        "Architectures": deployed["Architectures"],
        "Environment": {"Variables": variables},
    }


def _reachable(secret: str, aws: Aws) -> str:
    """Copy the bots' secret, with the simulator where containers find it."""
    bots = json.loads(aws.secrets.get_secret_value(SecretId=secret)["SecretString"])
    for bot in bots.values():
        bot["base_url"] = bot["base_url"].replace(HOST, FROM_CONTAINERS)
    copy = aws.secrets.create_secret(Name=f"sam-local-{uuid4()}", SecretString=json.dumps(bots))
    return copy["ARN"]


async def _run(arguments: list[str], gateway: str, ports: tuple[int, ...]) -> int:
    servers = [
        await asyncio.start_server(
            partial(_forward, port),
            sock=_listening(gateway, port),
        )
        for port in ports
    ]
    command, *others = arguments
    further = shlex.split(os.environ.get("SAM_LOCAL_OPTIONS", ""))
    sam = await asyncio.create_subprocess_exec(
        *(ROOT / ".venv-sam/bin/sam", "local", command, "--template", WRITTEN),
        *("--add-host", f"{FROM_CONTAINERS}:{gateway}", *further, *others),
    )
    try:
        return await sam.wait()
    finally:
        for server in servers:
            server.close()


def _listening(address: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The engine may not set up its network before the first container runs.
    listener.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_FREEBIND", 15), 1)
    listener.bind((address, port))
    return listener


async def _forward(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    there, back = await asyncio.open_connection(HOST, port)
    await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
