"""Completions and other answer files: the texts that judgements are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragalign.comparisons.texts import Texts, read_turns
from ragalign.judging.answers import load_items
from ragalign.judging.base import Verdict
from ragalign.judging.files import read_rows
from ragalign.judging.requests import Item, Json
from ragalign.text import normalise

# Upstream tools name a model's files after the model, followed by one of these separators and a suffix.
_SEPARATORS = "_.- "


@dataclass(frozen=True, slots=True)
class _Entry:
    turns: tuple[str, ...]
    answer: tuple[str, ...]
    category: str | None
    demonstrations: tuple[str, ...] | None
    n_prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Completions:
    """Answers by model, prompt and sample.

    A judged model's answers have the model's name or, failing that, a name that starts with the model's name and a
    separator, as in ICA's files.
    """

    _by_id: dict[str, dict[tuple[str, int], _Entry]] = field(default_factory=dict)
    _by_text: dict[str, dict[tuple[str, int], _Entry]] = field(default_factory=dict)
    _questions: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def load(cls, files: Sequence[str | Path], *, questions: str | Path | None = None) -> Completions:
        """Read files written by `ragalign generate`, or answer files of any upstream tool.

        Raises:
            DataError: a file cannot be read, or an answer has no question.
        """
        loaded = cls(_questions=read_turns(questions) if questions is not None else {})
        for file in files:
            items = load_items(file, questions=questions)
            rows = [row.value or {} for row in read_rows(file)]
            for item in items:
                loaded.add(item, rows[int(item.metadata["position"])])
        return loaded

    @property
    def models(self) -> list[str]:
        """The names of the models with answers."""
        return list(self._by_id)

    def complete(self, verdict: Verdict, texts: Texts) -> Texts:
        """Fill the gaps in `texts` with the verdict's prompt and answers; recorded texts are kept."""
        first = texts.turns[0] if texts.turns else None
        answer = self._find(verdict.model, verdict.item_id, first, verdict.sample)
        baseline = self._find(verdict.baseline, verdict.item_id, first or _first(answer), 0)
        entry = answer or baseline
        return replace(
            texts,
            turns=texts.turns or (entry.turns if entry else self._questions.get(verdict.item_id, ())),
            answer=texts.answer or (answer.answer if answer else ()),
            baseline=texts.baseline or (baseline.answer if baseline else ()),
            demonstrations=answer.demonstrations if answer else texts.demonstrations,
            n_prompt_tokens=answer.n_prompt_tokens if answer else texts.n_prompt_tokens,
        )

    def category(self, verdict: Verdict) -> str | None:
        """The category of the prompt, if the answer file or the questions give it."""
        found = self._find(verdict.model, verdict.item_id, None, verdict.sample)
        return found.category if found else None

    def known(self, model: str) -> str | None:
        """The name of a judged model's answers, or None if it has none."""
        if model in self._by_id:
            return model
        longer = [name for name in self._by_id if name.startswith(model) and name[len(model)] in _SEPARATORS]
        return min(longer, key=len) if model and longer else None

    def _find(self, model: str | None, item_id: str, instruction: str | None, sample: int) -> _Entry | None:
        name = self.known(model) if model is not None else None
        if name is None:
            return None
        found = self._by_id[name].get((item_id, sample))
        if instruction is None or (found is not None and normalise(found.turns[0]) == normalise(instruction)):
            return found
        # The same id can belong to another prompt in another file, so the text decides.
        return self._by_text[name].get((normalise(instruction), sample))

    def add(self, item: Item, row: Json) -> None:
        """Add an answer, with the demonstrations and prompt tokens from its row."""
        demonstrations, n_tokens = row.get("demonstrations"), row.get("n_prompt_tokens")
        entry = _Entry(
            turns=item.turns,
            answer=item.answer.turns,
            category=item.category,
            demonstrations=tuple(map(str, demonstrations)) if isinstance(demonstrations, list) else None,
            n_prompt_tokens=n_tokens if isinstance(n_tokens, int) else None,
        )
        name = item.answer.model
        self._by_id.setdefault(name, {}).setdefault((item.id, item.sample), entry)
        self._by_text.setdefault(name, {}).setdefault((normalise(item.turns[0]), item.sample), entry)


def _first(entry: _Entry | None) -> str | None:
    return entry.turns[0] if entry is not None else None
