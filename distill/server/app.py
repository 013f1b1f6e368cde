"""A server for an experiment's folder, run until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable
from pathlib import Path

from distill.runtime.open import open_batches
from distill.runtime.transcriber import open_search
from distill.server.connection import Limits
from distill.server.metrics import Metrics
from distill.server.scheduler import Scheduler
from distill.server.server import LOOPBACK, Address, Server

log = logging.getLogger(__name__)


def data_folder(experiment: Path) -> Path:
    """…/exp-mini/ss -> …/data-mini, as run.sh lays them out."""
    exp = experiment.resolve().parent
    return exp.with_name(exp.name.replace("exp", "data", 1))


def open_scheduler(
    experiment: Path, data: Path | None = None, runtime: str = "", threads: int = 1, output: str = ""
) -> Scheduler:
    """Load model, lang folder, and graph or n-gram of an experiment, and start its scheduler.

    data: the recipe's data folder, by default the one beside the experiments' folder, and for an export folder its own
    files. runtime, output: as for `open_batches`.
    Raises FileNotFoundError or ValueError that name what is missing.
    """
    runner = open_batches(experiment, runtime, output, threads)
    if data is None and not (experiment / "export.json").is_file():
        data = data_folder(experiment)
    return Scheduler(runner, open_search(experiment, runner, data=data), Metrics(), threads)


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Raises FileNotFoundError or ValueError for files that are not a certificate and its key."""
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"no {path}; --certificate and --key name PEM files")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ValueError(f"{certificate} is no certificate with its key in PEM form ({error})") from None
    return context


def check_access(address: Address) -> None:
    """Raises ValueError for a server open to the network without a token."""
    if address.host not in LOOPBACK and not address.token:
        raise ValueError(
            f"--host {address.host} can be reached from other machines: give --token (and --certificate, as"
            " browsers give pages a microphone over https only), or --open to admit anyone"
        )


async def run(scheduler: Scheduler, address: Address, limits: Limits, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM, then wait for open streams; a second signal ends them. ready: gets the port."""
    server, first, second = Server(scheduler, address, limits), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (second if first.is_set() else first).set())
    try:
        await server.start()
    except OSError as error:
        scheduler.close()
        raise ValueError(f"cannot listen on {address.host}:{address.port}: {error.strerror or error}") from None
    ready(server.port)
    await first.wait()
    if server.connections:
        log.info("shutting down: open streams have %g s to end; Ctrl-C again ends them now", limits.leave)
    await server.close(second)
    log.info("done")
