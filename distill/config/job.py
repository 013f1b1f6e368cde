"""Several calls that share a stage, as jobs."""

from __future__ import annotations

from typing import NamedTuple


class Job(NamedTuple):
    """One of `total` calls that share a stage, counted from 1."""

    number: int
    total: int


def takes(job: Job | None, shard: int) -> bool:
    """Whether a call works on a shard, counted from 0: every total-th is a job's; all are of a call that is none."""
    return job is None or shard % job.total == job.number - 1
