"""From the measured files to the JSON, the page and the table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from ragalign.reports.page import save
from ragalign.runs import write_json
from real import jobs, page
from real.figures import figures
from real.observations import load


def report(folder: Path, data: Path, *, out: Path | None = None, page_path: Path | None = None) -> None:
    """Score, compare, and write what was asked for.

    Args:
        folder: what `prepare` and `measure` wrote.
        data: where IFEval's prompts are.
        out: the JSON file.
        page_path: the HTML page.
    """
    _, groups, settings = jobs.load(folder)
    found = figures(load(folder, data))
    machines = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("measured/machine-*.json"))]
    if out is not None:
        asked = {group.name: {"jobs": len(group.jobs), "decoding": group.decoding} for group in groups}
        out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "machine": ", ".join(dict.fromkeys(machine["device"] for machine in machines)),
            "measured_on": machines,
        }
        write_json(out, {**about, "settings": settings, "asked": asked, **found.to_dict()})
    if page_path is not None:
        save(page.render(found, settings, created=datetime.now(UTC)), page_path)
    print(page.text(found))
