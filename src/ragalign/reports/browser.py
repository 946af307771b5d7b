"""The data of the page's answer browser: every judged answer and every text once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ragalign.comparisons.computed import is_pairwise
from ragalign.comparisons.judged import Judged
from ragalign.comparisons.metrics import ASPECTS, outcome
from ragalign.reports.report import Comparison, Report


@dataclass(slots=True)
class _Texts:
    """Texts by number; many rows share baselines and queries."""

    known: dict[str, int] = field(default_factory=dict)

    def add(self, text: str | None) -> int | None:
        return None if text is None else self.known.setdefault(text, len(self.known))


def browser_data(report: Report, n_prompts: int | None = None) -> dict[str, Any]:
    """The data that the page's script reads; texts are numbers into ``texts``.

    Rows are in the order of the prompts, with a prompt's models side by side.

    Args:
        report: all of it.
        n_prompts: only the first prompts of every comparison, for a smaller page; all of them by default.
    """
    texts = _Texts()
    models, rows = [], []
    prompts: dict[tuple[int, str], int] = {}
    for number, comparison in enumerate(report.comparisons):
        for name, line in comparison.verdicts.items():
            models.append({"name": name, "comparison": number})
            for judged in line.judged:
                if (number, judged.prompt) not in prompts:
                    if n_prompts is not None and sum(place == number for place, _ in prompts) >= n_prompts:
                        continue
                    prompts[number, judged.prompt] = len(prompts)
                prompt = prompts[number, judged.prompt]
                rows.append({"m": len(models) - 1, "k": prompt} | _row(judged, comparison, texts))
    rows.sort(key=lambda row: (row["k"], row["t"], row["s"], row["m"]))
    shown = {name for row in rows for name in row.get("d", ())}
    demonstrations = {
        name: [texts.add(demonstration.instruction), texts.add(demonstration.response)]
        for name, demonstration in sorted((report.demonstrations or {}).items())
        if name in shown
    }
    return {
        "comparisons": [_comparison(comparison) for comparison in report.comparisons],
        "models": models,
        "rows": rows,
        "demonstrations": demonstrations,
        "texts": list(texts.known),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    headline = comparison.metrics[0] if comparison.metrics else None
    return {
        "protocol": comparison.protocol,
        "judge": comparison.judge,
        "pairwise": is_pairwise(comparison.protocol),
        "label": headline.label if headline else "",
        "unit": headline.unit if headline else "",
        "labels": {metric.name: metric.label for metric in comparison.metrics},
    }


def _row(judged: Judged, comparison: Comparison, texts: _Texts) -> dict[str, Any]:
    verdict, found = judged.verdict, judged.texts
    value = _headline(judged, comparison)
    row: dict[str, Any] = {
        "id": verdict.item_id,
        "t": verdict.turn,
        "s": verdict.sample,
        "c": judged.category,
        "q": [texts.add(text) for text in found.turns[: verdict.turn]],
        "a": [texts.add(text) for text in found.answer[: verdict.turn]],
        "b": [texts.add(text) for text in found.baseline[: verdict.turn]],
        "base": verdict.baseline,
        "o": outcome(value) if is_pairwise(comparison.protocol) else None,
        "v": value,
        "sc": {name: round(score, 4) for name, score in verdict.scores.items()},
        "r": verdict.reason,
        "w": judged.n_words,
        "j": [
            {"f": order.swapped, "p": order.preference, "r": order.reason, "w": texts.add(order.raw)}
            for order in judged.orders
        ],
    }
    if found.shown:
        row["x"] = texts.add(found.shown)
    if found.demonstrations is not None:
        row |= {"d": list(found.demonstrations), "n": found.n_prompt_tokens}
    return row


def _headline(judged: Judged, comparison: Comparison) -> float | None:
    """The answer's own value of the headline metric; over aspects the mean of those it has."""
    if not comparison.metrics or not judged.verdict.is_scored:
        return None
    metric = comparison.metrics[0]
    if metric.name != ASPECTS:
        value = metric.value(judged)
    else:
        found = [value for part in metric.parts if (value := part.value(judged)) is not None]
        value = sum(found) / len(found) if found else None
    return None if value is None else round(value, 4)
