"""Queries and answers that a judge saw, read from upstream judgement files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ragalign.judging.answers import read_asked
from ragalign.judging.files import read_rows
from ragalign.judging.requests import Json

Place: TypeAlias = tuple[str, str, int]
"""The place of a text in a file: the prompt's id, the judged model and the turn."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a verdict, as far as they are recorded.

    Attributes:
        turns: the user's messages, one per turn.
        answer, baseline: the replies of the judged model and of the baseline, one per turn.
        shown: the judge's whole prompt, if the file records only that.
        demonstrations: ids of the demonstrations in the model's prompt, in prompt order; None if not recorded.
        n_prompt_tokens: tokens of the model's prompt.
    """

    turns: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    shown: str = ""
    demonstrations: tuple[str, ...] | None = None
    n_prompt_tokens: int | None = None

    def answer_of(self, turn: int) -> str | None:
        """The model's reply in a turn, counted from 1."""
        return self.answer[turn - 1] if len(self.answer) >= turn else None

    def baseline_of(self, turn: int) -> str | None:
        """The baseline's reply in a turn, counted from 1."""
        return self.baseline[turn - 1] if len(self.baseline) >= turn else None


def recorded_texts(protocol: str, path: str | Path) -> dict[Place, Texts]:
    """The texts in an upstream judgement file; ICA's files have none.

    Raises:
        DataError: the file cannot be read.
    """
    reader = _READERS.get(protocol)
    if reader is None:
        return {}
    found: dict[Place, Texts] = {}
    for row in read_rows(path):
        if row.value is not None:
            place, texts = reader(row.value, row.position)
            found.setdefault(place, texts)
    return found


def read_turns(questions: str | Path) -> dict[str, tuple[str, ...]]:
    """The questions of FastChat or Arena-Hard, one text per turn, by question id.

    Raises:
        DataError: the file cannot be read, or a row is not a question.
    """
    return {question.id: question.turns for question in read_asked(questions)}


def _alpaca_eval(row: Json, position: int) -> tuple[Place, Texts]:
    texts = Texts(_one(row.get("instruction")), _one(row.get("output_2")), _one(row.get("output_1")))
    return (str(position), str(row.get("generator_2")), 1), texts


def _just_eval(row: Json, position: int) -> tuple[Place, Texts]:
    place = (str(row.get("id", position)), str(row.get("generator_cand")), 1)
    return place, Texts(_one(row.get("input")), _one(row.get("output_cand")))


def _urial_pairwise(row: Json, position: int) -> tuple[Place, Texts]:
    place = (str(row.get("id", position)), str(row.get("generator")), 1)
    return place, Texts(_one(row.get("input")), _one(row.get("model_output")), _one(row.get("ref_output")))


def _mt_bench(row: Json, position: int) -> tuple[Place, Texts]:
    return _place(row, "question_id", "model"), Texts(shown=_text(row.get("user_prompt")))


def _mt_bench_pairwise(row: Json, position: int) -> tuple[Place, Texts]:
    return _place(row, "question_id", "model_1"), Texts(shown=_text(row.get("g1_user_prompt")))


def _arena_hard(row: Json, position: int) -> tuple[Place, Texts]:
    games = row.get("games")
    game = games[0] if isinstance(games, list) and games and isinstance(games[0], dict) else {}
    prompt = game.get("prompt", game.get("user_prompt"))
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content")
    place = (str(row.get("uid", row.get("question_id"))), str(row.get("model")), 1)
    return place, Texts(shown=_text(prompt))


def _place(row: Json, item: str, model: str) -> Place:
    turn = row.get("turn", 1)
    return str(row.get(item)), str(row.get(model)), turn if isinstance(turn, int) else 1


def _one(value: Any) -> tuple[str, ...]:
    if isinstance(value, list):
        value = value[0] if value else None
    return (value,) if isinstance(value, str) else ()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


_READERS: Mapping[str, Callable[[Json, int], tuple[Place, Texts]]] = {
    "alpaca-eval-1": _alpaca_eval,
    "alpaca-eval-2": _alpaca_eval,
    "just-eval": _just_eval,
    "urial-pairwise": _urial_pairwise,
    "mt-bench": _mt_bench,
    "mt-bench-pairwise": _mt_bench_pairwise,
    "arena-hard": _arena_hard,
}
