"""How well the rule of `ragalign.serving.conversations` tells a follow-up from a new topic.

MT-Bench's questions have two turns each: a second turn must keep its demonstrations, and the first turn of any other
question is a new topic. Usage:

    python benchmarks/serving_topic.py ../shared/data/mt_bench/question.jsonl
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np

from ragalign.encoders import Encoder
from ragalign.serving.conversations import is_short


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
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
        "command": "python benchmarks/serving_topic.py ../shared/data/mt_bench/question.jsonl",
        "encoder": encoder.id,
        "questions": len(rows),
        "python": platform.python_version(),
        "thresholds": found,
    }
    target = Path(__file__).parent / "results" / "serving_topic.json"
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
