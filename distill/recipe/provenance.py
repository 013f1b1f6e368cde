"""Where a result comes from: the machine, the commit and the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hardware(device: torch.device) -> str:
    """The GPU, or the processor with its instructions and the threads of all ranks on it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        name = facts.get("model name", name)
        if {"cpu family", "model"} <= facts.keys():  # virtual machines leave it out of the name
            name += f" {facts['cpu family']}/{facts['model']}"
    name += f" ({torch.backends.cpu.get_cpu_capability()})"
    cores = torch.get_num_threads() * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return f"{name}, {cores} of {os.cpu_count()} cores"


def commit() -> str:
    """The checked-out commit, with + where files differ from it; "unknown" outside a git checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def command_line() -> str:
    """The command of a result: run.sh with its options where it started this script, else the script's own."""
    return shlex.join(shlex.split(os.environ.get("RECIPE_COMMAND", "")) or sys.argv)
