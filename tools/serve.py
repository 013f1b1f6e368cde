"""Recognise speech over WebSockets: for sherpa-onnx's and Vosk's clients, and a page to speak to.

    serve.py --experiment exp-mini/ss            # then http://localhost:6006/

Beside the page: /sherpa and /vosk (or / for either, told by the first message), /health, /metrics. Ctrl-C takes no
more streams and lets the open ones end; a second one ends them with what was heard. Another machine is let in with

    DISTILL_TOKEN=secret serve.py --experiment DIR --host 0.0.0.0 --certificate cert.pem --key key.pem
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from distill.extras import needed_or_exit
from distill.recipe.script import run_script
from distill.runtime.batching import RUNTIMES

with needed_or_exit("serve.py"):
    from distill.server import app as serving
    from distill.server.server import Address, Limits


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    tls = serving.tls_context(args.certificate, args.key) if args.certificate else None
    address = Address(args.host, args.port, args.token, tuple(args.origin), tls)
    if not args.open:
        serving.check(address)
    limits = Limits(
        message=args.max_message, stream=args.max_stream, lasting=args.max_time, idle=args.idle,
        streams=args.streams, backlog=args.backlog, slow=args.slow, leave=args.leave, opening=args.opening,
    )  # fmt: skip
    setup = serving.Setup(args.experiment, args.data_dir, args.runtime, args.threads)
    recognition = serving.open_recognition(setup)

    def ready(port: int) -> None:
        log = logging.getLogger("serve")
        shown = "localhost" if args.host in ("127.0.0.1", "::1") else args.host
        log.info("serving %s: %s://%s:%d/", recognition.runner.facts.name, "https" if tls else "http", shown, port)

    asyncio.run(serving.run(recognition, address, limits, ready))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, required=True, help="folder of a streaming model (…/exp/ss)")
    parser.add_argument("--data-dir", type=Path, help="its lang folder and graphs (default: beside the exp folder)")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default="", help="default: onnx, the faster one, where stage 12 has exported"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=6006, help="0: any that is free (default: 6006)")
    parser.add_argument(
        "--token",
        default=os.environ.get("DISTILL_TOKEN", ""),
        help="what clients must give (or in the environment, DISTILL_TOKEN: other users see arguments)",
    )
    parser.add_argument("--open", action="store_true", help="let other machines in without a token")
    parser.add_argument("--certificate", type=Path, metavar="PEM", help="TLS certificate: https and wss")
    parser.add_argument("--key", type=Path, metavar="PEM", help="its key, where it is another file")
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="page of another site that may connect (repeatable)",
    )
    parser.add_argument(
        "--threads", type=int, default=cores(), metavar="N",
        help="of the model, and of the search (default: the cores at hand, %(default)s)",
    )  # fmt: skip
    add_limits(parser.add_argument_group("limits of a client"), Limits())
    return parser.parse_args()


def cores() -> int:
    """That this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_limits(group: argparse._ArgumentGroup, limits: Limits) -> None:
    """One option for each of them, with its default."""
    for name, default, meaning in (
        ("streams", limits.streams, "streams open at once"),
        ("max-message", limits.message, "bytes of a message"),
        ("max-stream", limits.stream, "seconds of audio of a stream"),
        ("max-time", limits.lasting, "seconds that a stream may last, pauses included"),
        ("idle", limits.idle, "seconds that a stream may go without audio"),
        ("backlog", limits.backlog, "seconds of audio that wait for the model before no more is read"),
        ("slow", limits.slow, "seconds in which a client must take a message"),
        ("opening", limits.opening, "seconds of a handshake"),
        ("leave", limits.leave, "seconds that open streams have to end after Ctrl-C"),
    ):
        group.add_argument(
            f"--{name}", type=type(default), default=default, metavar="N", help=f"{meaning} (default: {default})"
        )


if __name__ == "__main__":
    run_script(main)
