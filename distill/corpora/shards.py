"""Results stored in numbered shards: several calls of a stage share them as jobs, and a killed one continues."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.config.job import Job, takes
from distill.files import replacing

log = logging.getLogger(__name__)


def stored(
    folder: Path | None,
    names: Sequence[str],
    compute: Callable[[Sequence[str]], Iterable[Any]],
    job: Job | None,
    size: int,
) -> Iterator[tuple[str, Any]]:
    """Each name with its JSON value: from a shard of `size` names in `folder`, or computed and stored there.

    Of a job its shards alone. A shard that is damaged or of other names is computed again. Without a folder nothing is
    stored.
    """
    shards = [names[start : start + size] for start in range(0, len(names), size)]
    for number, some in enumerate(shards):
        if not takes(job, number):
            continue
        path = folder and folder / f"{number:05d}.json"
        pairs = _read(path) if path else []
        if [name for name, _ in pairs] != some:
            pairs = list(zip(some, compute(some), strict=True))
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path, shared=True) as temporary:
                    temporary.write_text(json.dumps(pairs), encoding="utf-8")
                if len(shards) > 1:
                    log.info("%s: shard %d of %d", path.parent.name, number + 1, len(shards))
        yield from pairs


def _read(path: Path) -> list[tuple[str, Any]]:
    """Names and values of a stored shard; none where it is missing or damaged."""
    try:
        return [(name, value) for name, value in json.loads(path.read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError, TypeError):
        return []
