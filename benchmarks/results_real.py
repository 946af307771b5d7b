"""The effect of demonstrations on a real base model: fixed, random, retrieved, many; and of decoding.

    python benchmarks/results_real.py prepare --data ../shared/data --folder build/results-real
    python benchmarks/results_real.py measure --folder build/results-real
    python benchmarks/results_real.py report --folder build/results-real

`prepare` retrieves and packs: every prompt becomes token ids. `measure` runs them through vLLM, on a CPU or a GPU, and
is the only step that needs the engine; run it again to resume (also after `--limit-s`). It needs vLLM,
ragalign's source and the prepared folder, so it can run on a machine that has nothing else. `report` compares.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FOLDER = Path("build/results-real")


def main() -> int:
    parser = argparse.ArgumentParser(description="The effect of demonstrations on a real base model.")
    steps = parser.add_subparsers(dest="step", required=True)
    preparing = steps.add_parser("prepare", help="retrieve and pack")
    preparing.add_argument("--data", type=Path, required=True, help="AlpacaEval's, IFEval's and LIMA's files")
    preparing.add_argument("--first", type=int, metavar="N", help="so many questions of each part, for a trial")
    measuring = steps.add_parser("measure", help="run the prompts through vLLM")
    measuring.add_argument("--model", help="in place of the packaged one, such as its GGUF file")
    measuring.add_argument("--limit-s", type=float, metavar="S", help="stop after so many seconds")
    reporting = steps.add_parser("report", help="compare what was measured")
    reporting.add_argument("--data", type=Path, required=True, help="as for prepare")
    reporting.add_argument("--out", type=Path, help="where the figures go, as JSON")
    reporting.add_argument("--page", type=Path, help="where the page goes, as HTML")
    for step in (preparing, measuring, reporting):
        step.add_argument("--folder", type=Path, default=FOLDER, help=f"{FOLDER} by default")
    options = parser.parse_args()
    # Each step imports what it needs, since the middle one runs where little is installed.
    if options.step == "prepare":
        from real.prepare import prepare

        prepare(options.data, options.folder, first=options.first)
    elif options.step == "measure":
        from real.measure import measure

        measure(options.folder, model=options.model, limit_s=options.limit_s)
    else:
        from real.reporting import report

        report(options.folder, options.data, out=options.out, page_path=options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
