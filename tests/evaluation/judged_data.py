"""Judging runs as `ragalign judge run` leaves them, with texts that would like to be markup."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Every one would run, load or break out somewhere if it were taken for markup or script.
ATTACKS = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 2'>",
    '"><svg onload="window.pwned = 3">',
    "' onmouseover='window.pwned = 4",
    "<!--<script>",
    "]]></style><style>* { display: none }</style>",
    "{{data}} {{script}} ${window.pwned = 5}",
    "javascript:window.pwned=6",
    "<iframe src='https://example.org/'></iframe>",
    "\u2028window.pwned = 7//\u2029 \x00 \\u003cscript\\u003e &lt;b&gt; &amp;",
)
MODELS = ("retrieved", "random", f"zero-shot {ATTACKS[1]}")
CATEGORIES = ("writing", "maths", ATTACKS[0])
N_PROMPTS = 60


def pairwise_rows(models: Iterable[str] = MODELS, n: int = N_PROMPTS, seed: int = 0) -> list[dict[str, Any]]:
    """Verdicts in both orders on answers of several models; every 20th is unscored."""
    draw = random.Random(seed)
    rows = []
    for skill, model in enumerate(models):
        for number in range(n):
            for swapped in (False, True):
                # The judge likes what it sees first.
                chance = 0.75 - 0.2 * skill + (-0.1 if swapped else 0.1)
                preference = 0.5 if draw.random() < 0.1 else float(draw.random() < chance)
                unscored = number % 20 == 19
                rows.append(
                    verdict_row(
                        item_id=f"q{number}",
                        model=model,
                        baseline=f"baseline {ATTACKS[2]}",
                        judge=f"judge {ATTACKS[3]}",
                        preference=None if unscored else preference,
                        reason=f"no label {ATTACKS[4]}" if unscored else None,
                        swapped=swapped,
                        category=CATEGORIES[number % len(CATEGORIES)],
                        raw=f"said {number} {ATTACKS[number % len(ATTACKS)]}",
                    )
                )
    return rows


def verdict_row(**values: Any) -> dict[str, Any]:
    """One line of ``verdicts.jsonl``."""
    row: dict[str, Any] = {
        "id": f"{values['item_id']}/{values.get('sample', 0)}",
        "protocol": "arena-hard",
        "judge": "judge",
        "model": "model",
        "baseline": None,
        "scores": {},
        "preference": None,
        "reason": None,
        "swapped": None,
        "turn": 1,
        "sample": 0,
        "category": None,
        "raw": "",
        "usage": None,
        "metadata": {},
        "cost": 0.001,
    }
    return row | values


def completion_rows(model: str, n: int = N_PROMPTS, demonstrations: Iterable[str] = ()) -> list[dict[str, Any]]:
    """What `ragalign generate` writes."""
    used = list(demonstrations)
    return [
        {
            "id": f"q{number}",
            "instruction": f"Question {number}: what is {ATTACKS[number % len(ATTACKS)]}?",
            "response": f"{model} answers {number} " + "word " * (number % 7) + ATTACKS[(number + 3) % len(ATTACKS)],
            "finish_reason": "stop",
            "n_prompt_tokens": 1000 + number,
            "n_cached_tokens": 0,
            "n_output_tokens": 10,
            "latency_s": 0.1,
            "demonstrations": used,
            "recipe": "ica",
            "model": model,
        }
        for number in range(n)
    ]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_run(folder: Path) -> tuple[Path, list[Path]]:
    """A judging run with its completions: (verdicts, completions)."""
    verdicts = write_lines(folder / "verdicts.jsonl", pairwise_rows())
    names = (*MODELS, f"baseline {ATTACKS[2]}")
    completions = [
        write_lines(folder / f"answers-{place}.jsonl", completion_rows(name)) for place, name in enumerate(names)
    ]
    return verdicts, completions
