"""How well the rule of `ragalign.serving.conversations` tells a follow-up from a new topic.

MT-Bench's questions have two turns each: a second turn must keep its demonstrations, and the first turn of any other
question is a new topic.

    python benchmarks/serving_topic.py --questions ../shared/data/mt_bench/question.jsonl \
        --out benchmarks/results/serving_topic.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from machine import about, report

from ragalign.encoders import Encoder
from ragalign.serving.conversations import is_short


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    encoder = Encoder.load()
    first = encoder.encode([row["turns"][0] for row in rows], kind="query")
    second = encoder.encode([row["turns"][1] for row in rows], kind="query")
    short = np.array([is_short(row["turns"][1]) for row in rows])
    follow_ups = np.einsum("nd,nd->n", first, second)
    others = (first @ first.T)[~np.eye(len(first), dtype=bool)]
    found = {
        f"{threshold:.2f}": {
            "follow_ups_that_keep": round(float(((follow_ups >= threshold) | short).mean()), 3),
            "changes_noticed": round(float((others < threshold).mean()), 3),
        }
        for threshold in (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)
    }
    result = {
        **about("sentence-transformers"),
        "encoder": encoder.id,
        "questions": len(rows),
        "thresholds": found,
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
