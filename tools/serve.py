"""Recognise speech over WebSockets: for sherpa-onnx's and Vosk's clients, and a page with a microphone.

    serve.py --experiment exp-mini/ss            # then http://localhost:6006/

Besides the page: /sherpa and /vosk (or / for either, chosen by the first message), /health, /metrics. Ctrl-C refuses
new streams and waits for open ones; a second one ends them with the words so far. Access from other machines:

    DISTILL_TOKEN=secret serve.py --experiment DIR --host 0.0.0.0 --certificate cert.pem --key key.pem
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from dataclasses import fields
from pathlib import Path

from distill.extras import needed_or_exit
from distill.recipe.script import run_script
from distill.runtime.runner import RUNTIMES

with needed_or_exit("serve.py"):
    from distill.server import app
    from distill.server.connection import Limits
    from distill.server.server import Address

LIMITS = {
    "streams": ("streams", "streams open at once"),
    "max-message": ("message", "bytes of a message"),
    "max-stream": ("stream", "seconds of audio of a stream"),
    "max-time": ("lasting", "seconds that a stream may last, pauses included"),
    "idle": ("idle", "seconds that a stream may go without audio"),
    "backlog": ("backlog", "seconds of audio in the queue before reading pauses"),
    "slow": ("slow", "seconds in which a client must accept a message"),
    "opening": ("opening", "seconds of a handshake"),
    "leave": ("leave", "seconds that open streams have to end after Ctrl-C"),
}
"""Field of `Limits` and help of each option."""


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    tls = app.tls_context(args.certificate, args.key) if args.certificate else None
    address = Address(args.host, args.port, args.token, tuple(args.origin), tls)
    if not args.open:
        app.check_access(address)
    limits = Limits(**{each.name: getattr(args, each.name) for each in fields(Limits)})
    scheduler = app.open_scheduler(args.experiment, args.data_dir, args.runtime, args.threads, args.output)

    def ready(port: int) -> None:
        host = "localhost" if args.host in ("127.0.0.1", "::1") else args.host
        url = f"{'https' if tls else 'http'}://{host}:{port}/"
        logging.getLogger("serve").info("serving %s: %s", scheduler.runner.info.name, url)

    asyncio.run(app.run(scheduler, address, limits, ready))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, cores = parser.add_argument, os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    add("--experiment", type=Path, required=True, help="folder of a streaming model (…/exp/ss)")
    add("--data-dir", type=Path, help="its lang folder, graphs and n-gram (default: beside the exp folder)")
    add("--output", default="", help="main, ctc or transducer (default: the first of them that was trained)")
    add("--runtime", choices=RUNTIMES, default="", help="default: onnx, the faster one, where stage 12 has exported")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=6006, help="0: any that is free (default: 6006)")
    add("--token", default=os.environ.get("DISTILL_TOKEN", ""),
        help="required of clients (or in the environment, DISTILL_TOKEN: other users see arguments)")  # fmt: skip
    add("--open", action="store_true", help="admit other machines without a token")
    add("--certificate", type=Path, metavar="PEM", help="TLS certificate: https and wss")
    add("--key", type=Path, metavar="PEM", help="its key, if in another file")
    add("--origin", action="append", default=[], metavar="URL", help="site whose pages may connect (repeatable)")
    add("--threads", type=int, default=cores, metavar="N",
        help="of the model, and of the search (default: the available cores, %(default)s)")  # fmt: skip
    group = parser.add_argument_group("limits of a client")
    for option, (name, meaning) in LIMITS.items():
        default = getattr(Limits, name)
        group.add_argument(
            f"--{option}", dest=name, type=type(default), default=default, metavar="N",
            help=f"{meaning} (default: {default})",
        )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
