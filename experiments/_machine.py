"""The machine that seconds were taken on."""

from __future__ import annotations

import os
import pathlib
import platform


def machine() -> str:
    """The processor, in words."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
