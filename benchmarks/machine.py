"""The machine and versions, as recorded in a benchmark's result."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

from ragalign.runs.machine import processor, versions


def about(*packages: str) -> dict[str, Any]:
    """The command, the machine and the versions of these packages."""
    return {
        "command": "python " + " ".join([os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": dict.fromkeys(packages, "not installed") | versions(*packages),
    }


def report(result: dict[str, Any], out: Path | None) -> None:
    """Print a result as JSON, and write it to a file if one is given."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    if out:
        out.write_text(text, encoding="utf-8")


def peak_gib() -> float:
    """The most memory that this process has held so far, in GiB; memory-mapped files count while they are resident."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
