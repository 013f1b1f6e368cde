"""Fetch a wheel that is for one Python, but named for all of Python 3, as `k2-1.23.4-py3.10-none-any.whl` is.

An older pip reads such a name as "py3" and takes whichever its index lists first, a newer one refuses all of them.
Here the file is chosen by its name, for the Python that runs this, from the indexes and folders that pip is
configured with, and stored under a name that every pip reads as meant: `k2-1.23.4-cp310-none-any.whl`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYTHON = sys.version_info[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a wheel for this Python; prints the path of the file.")
    parser.add_argument("requirement", metavar="NAME==VERSION")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    name, _, version = args.requirement.partition("==")
    try:
        print(fetch(name, version, args.folder))
    except (ValueError, OSError) as error:
        sys.exit(f"{args.requirement} cannot be fetched: {error}")


def fetch(name: str, version: str, folder: Path) -> Path:
    """The wheel of this Python, in `folder`; ValueError where pip's indexes and folders have none, or a damaged one."""
    command: Any = module("pip._internal.commands").create_command("download")
    options, _ = command.parse_args([])  # reads pip's files and PIP_…
    with command.main_context():
        session = command.get_default_session(options)
        offered = list(links(name, session, options))
        fitting = [link for link in offered if fits(link.filename, name, version)]
        if not fitting:
            seen = sorted({link.filename for link in offered if f"-{version}-" in link.filename})
            raise ValueError(
                f"no wheel for Python {PYTHON[0]}.{PYTHON[1]} among the {len(seen)} files of this version in the"
                f" indexes and folders that pip is configured with (pip config list): {', '.join(seen) or 'none'}"
            )
        return download(session, fitting[0], folder / f"{name}-{version}-cp{PYTHON[0]}{PYTHON[1]}-none-any.whl")


def links(name: str, session: Any, options: Any) -> Iterator[Any]:
    """Everything that pip's indexes and --find-links list for a project, as pip's links."""
    collector, link = module("pip._internal.index.collector"), module("pip._internal.models.link").Link
    sources = collector.LinkCollector.create(session, options=options)
    pages = sources.search_scope.get_index_urls_locations(name)
    for place in sources.find_links:
        if Path(place).is_dir():
            yield from (link(path.resolve().as_uri()) for path in sorted(Path(place).glob("*.whl")))
        else:
            pages.append(place)
    for page in pages:
        content = sources.fetch_response(link(page))
        if content is not None:
            yield from collector.parse_links(content)


def module(name: str) -> Any:
    """A part of pip, which reads its configuration, proxies and certificates as no other program does."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"this pip is not known ({error}); install another (pip install 'pip<27')") from None


def fits(filename: str, name: str, version: str) -> bool:
    """Whether a file is the wheel for this Python: its tag py3.10, py310 or cp310, for any machine or this kind."""
    python = rf"(?:py{PYTHON[0]}\.?|cp{PYTHON[0]}){PYTHON[1]}"
    pattern = rf"{re.escape(name)}-{re.escape(version)}(-\d\w*)?-{python}-\w+-(any|.*linux.*x86_64)\.whl"
    return re.fullmatch(pattern, filename) is not None


def download(session: Any, link: Any, target: Path) -> Path:
    """Write what a link leads to; ValueError if its hash is not that of the index."""
    answer = session.get(link.url.split("#")[0], stream=True, headers={"Accept-Encoding": "identity"})
    if answer.status_code >= 400:
        raise ValueError(f"{link.filename}: the index answers {answer.status_code} {answer.reason}")
    digest = hashlib.new(link.hash_name or "sha256")
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("wb") as file:
        for piece in answer.iter_content(1 << 20):
            digest.update(piece)
            file.write(piece)
    if link.hash is not None and digest.hexdigest() != link.hash:
        temporary.unlink()
        raise ValueError(f"{link.filename} has the {digest.name} {digest.hexdigest()}, expected {link.hash}; try again")
    return temporary.replace(target)


if __name__ == "__main__":
    main()
