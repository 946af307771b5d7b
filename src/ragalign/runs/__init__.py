"""Runs: outputs that an interrupted command resumes.

Every command that takes long writes into a run folder or into one JSON Lines file, and all of them behave alike:

- Settings are claimed first. Asked again with other settings, the output is refused, with what differs.
- One process writes at a time; a second one is refused at once and changes nothing. The lock of a process that died
  is free.
- Work is kept as it is finished. A last line that was cut off is removed, if it is certainly ours; any other content
  is refused and left as it is.

In a folder::

    folder = RunFolder("out")
    with folder.writing():                                  # the lock
        folder.claim({"model": "m"}, work="answers.jsonl")  # the settings, in run.json
        lines = folder.lines("answers.jsonl", ("id", "response"))
        done = {row["id"] for row in lines.read()}
        lines.append({"id": "1", "response": "..."})

A single file keeps its settings in a record beside it, ``NAME.run.json``::

    with OutputFile("answers.jsonl", {"model": "m"}, ("id", "response")) as file:
        file.rows, file.append(...)
"""

from ragalign.runs.folder import RunFolder
from ragalign.runs.lines import LineFile
from ragalign.runs.machine import machine_facts
from ragalign.runs.output import OutputFile
from ragalign.runs.settings import fingerprint
from ragalign.runs.writing import write_json, write_lines

__all__ = ["LineFile", "OutputFile", "RunFolder", "fingerprint", "machine_facts", "write_json", "write_lines"]
