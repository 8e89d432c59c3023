"""Provenance of a result: versions, machine, time."""

from __future__ import annotations

import datetime
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

from featpipe.lazy import Lazy

metadata, psutil = Lazy("importlib.metadata"), Lazy("psutil")

PACKAGES = (
    "featpipe", "torch", "torchvision", "openvino", "scikit-learn", "numpy", "scipy", "h5py",
    "pandas",
)  # fmt: skip


def package_version(name: str) -> str:
    """Return the installed version of a package without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def environment() -> dict[str, Any]:
    """Return versions and hardware as a JSON-like mapping."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"(?m)^model name[^:]*:(.*)", info.read_text() if info.exists() else "")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": named[1].strip() if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": {name: package_version(name) for name in PACKAGES},
    }


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
