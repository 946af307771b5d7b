"""What an engine in a process of its own prints: held back while it starts, shown afterwards."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import subprocess, sys, time
from ragalign._quiet import quiet_start

child = "import sys; print('chatter'); sys.stderr.write('more'); input(); print(); print('crash')"
with quiet_start():
    started = subprocess.Popen([sys.executable, "-u", "-c", child], stdin=subprocess.PIPE, text=True)
    time.sleep(2)
started.communicate("\\n", timeout=20)
time.sleep(0.5)
print("result")
"""


def test_only_what_comes_after_the_start_is_shown() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "result\n"
    assert done.stderr.splitlines()[-1] == "crash"
    assert "chatter" not in done.stderr
