"""Recognise speech over WebSockets: for sherpa-onnx's and Vosk's clients, and a page to speak to.

    serve.py --experiment exp-mini/ss            # then http://localhost:6006/

Beside the page: /sherpa and /vosk (or / for either, told by the first message), /health, /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from distill.deploy import serving
from distill.deploy.batching import RUNTIMES
from distill.deploy.server import Address, Limits
from distill.stages import run_script


def main() -> None:
    args = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    tls = serving.tls_context(args.certificate, args.key) if args.certificate else None
    address = Address(args.host, args.port, args.token, tuple(args.origin), tls)
    if not args.open:
        serving.check(address)
    limits = Limits(
        args.max_message, args.max_stream, args.idle, args.streams, args.backlog, args.slow, args.leave
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
    parser.add_argument("--port", type=int, default=6006)
    parser.add_argument(
        "--token", default=os.environ.get("DISTILL_TOKEN", ""), help="clients must give (DISTILL_TOKEN)"
    )
    parser.add_argument("--open", action="store_true", help="let other machines in without a token")
    parser.add_argument("--certificate", type=Path, help="TLS certificate (PEM)")
    parser.add_argument("--key", type=Path, help="its key, where it is another file")
    parser.add_argument("--origin", action="append", default=[], help="page of another site that may connect")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the model, and of the search")
    limits = Limits()
    parser.add_argument("--streams", type=int, default=limits.streams, help="open at once")
    parser.add_argument("--max-message", type=int, default=limits.message, help="bytes")
    parser.add_argument("--max-stream", type=float, default=limits.stream, help="seconds of audio")
    parser.add_argument("--idle", type=float, default=limits.idle, help="seconds without a message")
    parser.add_argument("--backlog", type=float, default=limits.backlog, help="seconds of audio that may wait")
    parser.add_argument("--slow", type=float, default=limits.slow, help="seconds in which a message must be taken")
    parser.add_argument("--leave", type=float, default=limits.leave, help="seconds for open streams to end at the end")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
