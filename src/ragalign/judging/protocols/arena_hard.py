"""Arena-Hard: two answers in both orders, five labels; strong verdicts count three times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.errors import DataError
from ragalign.judging.base import Decision, Figures, Judgement, Protocol, UnreadableReplyError, Verdict
from ragalign.judging.protocols.grouping import figures, group, mean, observe, unit
from ragalign.judging.protocols.prompt_files import parse_arena_hard, prompt_text
from ragalign.judging.requests import Answer, Item, Json, JudgeParameters, JudgeReply, JudgeRequest

# The first answer's share, and the weight of the verdict.
_LABELS = {
    "A>>B": (1.0, 3),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "A<B": (0.0, 1),
    "A<<B": (0.0, 3),
    "B>>A": (0.0, 3),
    "B>A": (0.0, 1),
    "B=A": (0.5, 1),
    "B<A": (1.0, 1),
    "B<<A": (1.0, 3),
}
_PATTERN = re.compile(r"\[\[([AB<>=]+)\]\]")
_PARAMETERS = JudgeParameters(temperature=0.0, max_tokens=4096)
_BASELINE_OF_V0 = "gpt-4-0314"
_N_BOOTSTRAPS = 100
_SEED = 42


class ArenaHard(Protocol):
    """The mean score of all battles against the baseline, in percent, with a bootstrap interval over battles.

    In upstream files the baseline is shown first in the first game. Version 2 of the tool takes the last label of
    a reply and drops both games of a prompt if one lacks a label; version 0.1 takes a label only if all labels agree,
    and keeps the other game. Recorded files are read as their version does, new replies as version 2 does.

    Args:
        strict: reject replies with different labels, as version 0.1 does.
        prompt_file: Arena-Hard's YAML configuration.
    """

    name = "arena-hard"
    is_pairwise = True
    file_format = "jsonl"

    def __init__(self, *, strict: bool = False, prompt_file: str | Path | None = None) -> None:
        super().__init__(strict=strict)
        own_text, own_where = prompt_text(None, "arena_hard.yaml")
        own = parse_arena_hard(own_text, own_where)
        text, where = prompt_text(prompt_file, "arena_hard.yaml")
        self._prompt = parse_arena_hard(text, where, default_system=own.turns[0].content)
        numbered = "{question_1}" in self._prompt.turns[-1].content
        self._names = ("question_1", "answer_1", "answer_2") if numbered else ("QUESTION", "ANSWER_A", "ANSWER_B")
        self._prompt.check(self._names, (), where)

    def build(self, item: Item) -> list[JudgeRequest]:
        """Two requests: one with the baseline first, one with the model first."""
        if item.baseline is None:
            raise DataError(f"item {item.id!r} has no baseline answer, which the protocol {self.name} needs")
        requests = []
        for game, pair in ((1, (item.baseline, item.answer)), (2, (item.answer, item.baseline))):
            texts = (item.instruction, *(answer.text for answer in pair))
            messages = self._prompt.render(dict(zip(self._names, texts, strict=True)))
            name = f"{item.id}/{item.sample}/game-{game}"
            requests.append(JudgeRequest(name, item, messages, _PARAMETERS, swapped=game == 1))
        return requests

    def read(self, request: JudgeRequest, reply: JudgeReply) -> Decision:
        """The last label in double brackets."""
        labels = _PATTERN.findall(reply.text.upper())
        if not labels:
            raise UnreadableReplyError("no label such as [[A>B]]")
        if labels[-1] not in _LABELS:
            raise UnreadableReplyError(f"the label [[{labels[-1]}]] is unknown")
        if len(set(labels)) > 1 and (self.strict or request.item.metadata.get("version") == 0):
            raise UnreadableReplyError(f"different labels: {', '.join(dict.fromkeys(labels))}")
        first, weight = _LABELS[labels[-1]]
        return Decision(preference=1 - first if request.swapped else first, metadata={"weight": weight})

    def context(self, item: Item) -> Json:
        """The row of a replayed file, its version and the stored score."""
        return {key: item.metadata[key] for key in ("source", "row", "version", "stored") if key in item.metadata}

    def aggregate(self, verdicts: Sequence[Verdict]) -> list[Figures]:
        """One `Figures` per model; `n` counts games."""
        games = [game for pair in group(verdicts, _row) for game in _complete(pair)]
        tables = group(games, lambda v: (v.model, v.baseline, v.judge))
        return [self._figures(members) for members in tables]

    def replay(self, row: Json, position: int, source: str) -> list[Verdict]:
        """Both games of a row, parsed from their judgements; the baseline of version 0.1's files is gpt-4-0314."""
        version = 2 if "uid" in row else 0
        uid = row.get("uid", row.get("question_id"))
        model, games = row.get("model"), row.get("games")
        if not isinstance(uid, str | int) or not isinstance(model, str):
            raise DataError("no 'uid' or 'question_id', or no string 'model'")
        if not isinstance(games, list) or not games:
            raise DataError("'games' is missing, empty or not a list")
        baseline = str(row.get("baseline") or _BASELINE_OF_V0)
        verdicts = []
        for number, game in enumerate(games, start=1):
            game = game if isinstance(game, dict) else {}
            text = game.get("judgment")
            if isinstance(text, dict):
                text = text.get("answer")
            stored = game.get("score")
            if text is None and isinstance(stored, str):
                text = f"[[{stored}]]"
            item = Item(
                str(uid),
                ("",),
                Answer(model, ("",)),
                Answer(baseline, ("",)),
                category=str(row["category"]) if row.get("category") else None,
                metadata={"source": source, "row": position, "version": version, "stored": stored},
            )
            swapped = number % 2 == 1
            judge = str(row.get("judge") or "")
            verdicts.append(self.parse_recorded(item, text, judge, swapped=swapped, suffix=f"/game-{number}"))
        return verdicts

    def record(self, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
        """Rows of ``model_judgment/<judge>/<model>.jsonl`` in version 2's format; a game without a reply is null."""
        rows = []
        for pair in group(judgements, lambda judgement: unit(judgement.verdict)):
            games = {bool(judgement.verdict.swapped): judgement for judgement in pair}
            some = pair[0].verdict
            rows.append(
                {
                    "uid": some.item_id,
                    "category": some.category or "hard_prompt",
                    "judge": some.judge,
                    "model": some.model,
                    "baseline": some.baseline,
                    "games": [_recorded_game(games.get(swapped)) for swapped in (True, False)],
                }
            )
        return rows

    def _figures(self, verdicts: Sequence[Verdict]) -> Figures:
        # A strong verdict counts as three battles of the same prompt, also for the interval.
        battles = [v for v in verdicts for _ in range(v.metadata.get("weight", 1) if v.is_scored else 1)]
        observed = {"score": observe(battles, _percent, is_share=True)}
        values: dict[str, Any] = {"score": mean(observed["score"]), "lower": None, "upper": None}
        scores = observed["score"].values
        values["n_battles"] = len(scores)
        if scores:
            drawn = np.random.default_rng(_SEED).choice(scores, size=(_N_BOOTSTRAPS, len(scores)))
            lower, upper = np.quantile(drawn.mean(axis=1), [0.05, 0.95])
            values |= {"lower": float(lower), "upper": float(upper)}
        stored = [v for v in verdicts if "stored" in v.metadata]
        if stored:
            values["n_stored"] = len(stored)
            values["n_stored_differing"] = sum(_differs(v) for v in stored)
        categories = group((v for v in battles if v.category is not None), lambda v: v.category)
        if len(categories) > 1:
            by_category = {
                str(members[0].category): observe(members, _percent, is_share=True) for members in categories
            }
            values["categories"] = {name: mean(observations) for name, observations in by_category.items()}
            observed |= {f"categories.{name}": observations for name, observations in by_category.items()}
        return figures(self.name, verdicts, values, observed)


def _row(verdict: Verdict) -> object:
    return unit(verdict), verdict.metadata.get("row")


def _complete(games: Sequence[Verdict]) -> list[Verdict]:
    """The games of a prompt; except in version 0.1, an unscored game makes all of them unscored."""
    unscored = [game for game in games if not game.is_scored]
    if not unscored or games[0].metadata.get("version") == 0:
        return list(games)
    return [
        replace(game, preference=None, reason="the other order is unscored") if game.is_scored else game
        for game in games
    ]


def _percent(verdict: Verdict) -> float | None:
    return None if verdict.preference is None else 100 * verdict.preference


def _differs(verdict: Verdict) -> bool:
    stored = verdict.metadata["stored"]
    if stored not in _LABELS:
        return verdict.is_scored
    first, weight = _LABELS[stored]
    expected = 1 - first if verdict.swapped else first
    return verdict.preference != expected or verdict.metadata.get("weight") != weight


def _recorded_game(game: Judgement | None) -> dict[str, Any] | None:
    if game is None or not game.verdict.raw:
        return None
    return {
        "score": _PATTERN.findall(game.verdict.raw.upper())[-1] if game.verdict.is_scored else None,
        "judgment": {"answer": game.verdict.raw},
        "prompt": [{"role": t.role, "content": t.content} for t in game.request.messages] if game.request else [],
    }
