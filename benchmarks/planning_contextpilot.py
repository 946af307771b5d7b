"""ContextPilot's `reorder` of sets of numbers, for `planning.py`: runs in an environment of its own.

Reads a JSON list of lists on stdin, best first, and writes {"version", "seconds", "sets", "order"} as the last line of
stdout: the reordered sets, and which of the given ones each is.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

from contextpilot import ContextPilot

given = json.load(sys.stdin)
start = time.perf_counter()
sets, order = ContextPilot(use_gpu=False).reorder(given)
seconds = time.perf_counter() - start
print(json.dumps({"version": version("contextpilot"), "seconds": seconds, "sets": sets, "order": order}))
