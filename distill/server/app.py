"""A server for an experiment's folder: its model, lang folder and graph, and the loop that runs until a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.decode.online import OnlineDecoder, load_lang
from distill.runtime.batching import open_batches
from distill.runtime.session import SAMPLE_RATE
from distill.server.metrics import Metrics
from distill.server.scheduler import Recognition
from distill.server.server import LOOPBACK, Address, Limits, Server

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What is served. data: the recipe's data folder; None: the one beside the experiments' folder.

    runtime: as for `open_batches`.
    """

    experiment: Path
    data: Path | None = None
    runtime: str = ""
    threads: int = 1
    streams_together: int = 32


def data_folder(experiment: Path) -> Path:
    """…/exp-mini/ss -> …/data-mini, as run.sh lays them out."""
    exp = experiment.resolve().parent
    return exp.with_name(exp.name.replace("exp", "data", 1))


def open_recognition(setup: Setup) -> Recognition:
    """Everything loaded and running; raises FileNotFoundError or ValueError naming what is missing."""
    runner = open_batches(setup.experiment, setup.runtime, threads=setup.threads)
    data = setup.data or data_folder(setup.experiment)
    lang, graphs = load_lang(data, list(runner.facts.outputs))
    decoder = OnlineDecoder(graphs / "HLG.fst", lang, runner.facts.hop / SAMPLE_RATE)
    return Recognition(runner, decoder, Metrics(), setup.threads, setup.streams_together)


def tls_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """Raises FileNotFoundError or ValueError for files that are no certificate and key."""
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"no {path}; --certificate and --key name PEM files")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ValueError(f"{certificate} is no certificate with its key in PEM form ({error})") from None
    return context


def check(address: Address) -> None:
    """Refuse to be heard by a network without a token."""
    if address.host not in LOOPBACK and not address.token:
        raise ValueError(
            f"--host {address.host} can be reached from other machines: give --token (and --certificate, as"
            " browsers give pages a microphone over https only), or --open to let anyone in"
        )


async def run(recognition: Recognition, address: Address, limits: Limits, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM, then end open streams, at the second one at once. ready: told the port."""
    server, first, second = Server(recognition, address, limits), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(each, lambda: (second if first.is_set() else first).set())
    try:
        await server.start()
    except OSError as error:
        recognition.close()
        raise ValueError(f"cannot listen on {address.host}:{address.port}: {error.strerror or error}") from None
    ready(server.port)
    await first.wait()
    if server.metrics.value("streams_open"):
        log.info("leaving: open streams have %g s to end; Ctrl-C again ends them now", limits.leave)
    await server.close(second)
    log.info("done")
