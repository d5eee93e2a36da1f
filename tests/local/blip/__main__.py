"""Starts the simulator as a process and prints, as one line of JSON, where it is and its keys."""

import argparse
import asyncio
import json
import signal
from pathlib import Path

import tests.local.blip as package
from tests.local.blip.control import PREFIX
from tests.local.blip.faults import magic_table
from tests.local.blip.server import Blip
from tests.local.blip.settings import Bot, Settings
from tests.local.blip.simulator import Server
from tests.local.blip.templates import read


def main() -> None:
    arguments = _parser().parse_args()
    plan = {
        "messages_per_second": arguments.messages_per_second or None,
        "commands_per_second": arguments.commands_per_second or None,
    }
    keys = arguments.key or [""]
    bots = [Bot.model_validate({"key": key} | plan if key else plan) for key in keys]
    settings = Settings().changed(arguments.settings)
    if arguments.receipts_url:
        headers = {"X-Receipts-Secret": arguments.receipts_secret}
        settings = settings.changed(
            {"receipts": {"url": arguments.receipts_url, "headers": headers}}
        )
    templates = read(arguments.templates) if arguments.templates else None
    blip = Blip(bots, templates, settings)
    asyncio.run(_serve(blip, Server(blip, arguments.host, arguments.port, arguments.certificate)))


async def _serve(blip: Blip, server: Server) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    url = server.url
    keys = {name: bot.key for name, bot in blip.bots.items()}
    print(json.dumps({"url": url, "inbox": f"{url}{PREFIX}/inbox", "keys": keys}), flush=True)
    await stop.wait()
    await server.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.local.blip",
        description=package.__doc__,
        epilog=f"Numbers that always do the same, in every mode:\n\n{magic_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: the system chooses (default)")
    parser.add_argument(
        "--key", action="append", help="a bot's key, base64 of identifier:secret; several: repeat"
    )
    parser.add_argument(
        "--messages-per-second", type=float, default=50, help="each bot's plan (50); 0: no limit"
    )
    parser.add_argument(
        "--commands-per-second", type=float, default=200, help="likewise for commands (200)"
    )
    parser.add_argument("--receipts-url", help="where receipts are posted")
    parser.add_argument("--receipts-secret", default="", help="the header X-Receipts-Secret")
    parser.add_argument(
        "--certificate",
        type=Path,
        help="speak TLS, with a new certificate that is written there (for SSL_CERT_FILE)",
    )
    parser.add_argument("--templates", type=Path, help="instead of templates.json beside this")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="JSON: see GET /_simulator/settings"
    )
    return parser


if __name__ == "__main__":
    main()
