"""Runs: resumable outputs of long commands.

Every long command writes a run folder or a JSON Lines file. All of them work the same way:

- Settings are recorded first. A command with other settings is refused, with a message that lists the differences.
- One process writes at a time. A second process is refused immediately and changes nothing. A lock is released when
  its process dies.
- Finished work is kept. A truncated last line is removed if it is certainly ours; other content is refused and not
  changed.

In a folder::

    folder = RunFolder("out")
    with folder.writing():                                  # the lock
        folder.claim({"model": "m"}, work="answers.jsonl")  # the settings, in run.json
        lines = folder.lines("answers.jsonl", ("id", "response"))
        done = {row["id"] for row in lines.read()}
        lines.append({"id": "1", "response": "..."})

The settings of a single file are in a record beside it, ``NAME.run.json``::

    with OutputFile("answers.jsonl", {"model": "m"}, ("id", "response")) as file:
        file.rows, file.append(...)
"""

from ragalign.runs.folder import RunFolder
from ragalign.runs.lines import LineFile
from ragalign.runs.machine import machine_facts
from ragalign.runs.output import OutputFile
from ragalign.runs.settings import fingerprint
from ragalign.runs.writing import TEMPORARY, replacing, write_json, write_lines

__all__ = [
    "TEMPORARY",
    "LineFile",
    "OutputFile",
    "RunFolder",
    "fingerprint",
    "machine_facts",
    "replacing",
    "write_json",
    "write_lines",
]
