"""Model answers in any upstream tool's file, joined into items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ragalign.errors import DataError
from ragalign.judging.base import Answer, Item, Json
from ragalign.judging.files import read_rows


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of an answer file; `samples` are several answers to the same prompt."""

    id: str | None
    instruction: str | None
    model: str
    samples: tuple[tuple[str, ...], ...]
    category: str | None = None
    metadata: Json = field(default_factory=dict)


def load_items(
    answers: str | Path,
    *,
    baseline: str | Path | None = None,
    questions: str | Path | None = None,
    references: str | Path | None = None,
) -> list[Item]:
    """Join answer files into items, in the order of `answers`.

    Rows are joined by id where both files have ids, otherwise by instruction; a baseline's first sample counts.

    Args:
        answers: what the judged model said, in the form of any upstream tool.
        baseline: what it is compared with.
        questions: FastChat's or Arena-Hard's questions, for files whose answers do not repeat them.
        references: reference answers in FastChat's form.

    Raises:
        DataError: a file cannot be read, an answer has no question, or one has no baseline answer.
    """
    rows = _read(answers)
    asked = {one.id: one for one in _read_questions(questions)} if questions is not None else {}
    known = {row.id: row for row in _read(references)} if references is not None else {}
    opponents = _Opponents(_read(baseline), baseline) if baseline is not None else None
    items = []
    for position, row in enumerate(rows):
        item_id = row.id if row.id is not None else str(position)
        question = asked.get(item_id)
        turns = question.turns if question else ((row.instruction,) if row.instruction is not None else None)
        if turns is None:
            hint = "" if questions is not None else "; give the questions' file as well"
            raise DataError(f"{answers}: the question {item_id!r} is not known{hint}")
        opponent = opponents.find(row, item_id, turns[0]) if opponents else None
        reference = known.get(item_id)
        for sample, texts in enumerate(row.samples):
            items.append(
                Item(
                    id=item_id,
                    turns=turns,
                    answer=Answer(row.model, texts),
                    baseline=Answer(opponent.model, opponent.samples[0]) if opponent else None,
                    reference=reference.samples[0] if reference else None,
                    category=question.category if question and question.category else row.category,
                    sample=sample,
                    metadata={"position": position, **row.metadata},
                )
            )
    return items


def read_categories(questions: str | Path) -> dict[str, str]:
    """Question ids to categories, from FastChat's or Arena-Hard's questions.

    Raises:
        DataError: the file cannot be read, or a row is no question.
    """
    return {question.id: question.category for question in _read_questions(questions) if question.category}


@dataclass(frozen=True, slots=True)
class _Question:
    id: str
    turns: tuple[str, ...]
    category: str | None


class _Opponents:
    """The baseline's answers by id and by instruction."""

    def __init__(self, rows: Sequence[_Row], path: str | Path | None) -> None:
        self._path = path
        self._by_id = {row.id: row for row in rows if row.id is not None}
        self._by_text = {row.instruction: row for row in reversed(rows) if row.instruction is not None}

    def find(self, row: _Row, item_id: str, instruction: str) -> _Row:
        """The answer to the same prompt."""
        found = self._by_id.get(row.id) if row.id is not None else None
        if found is None or (found.instruction is not None and found.instruction != instruction):
            found = self._by_text.get(instruction)
        if found is None:
            raise DataError(f"{self._path} has no answer to the prompt {item_id!r}: {instruction[:60]!r}")
        return found


def _read(path: str | Path) -> list[_Row]:
    rows = []
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        reader = next((reader for key, reader in _READERS if key in row.value), None)
        if reader is None:
            expected = ", ".join(f"{key!r}" for key, _ in _READERS)
            raise DataError(f"{row.where}: no model answer: none of the fields {expected}")
        try:
            rows.append(reader(row.value, Path(path)))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
    ids = Counter(row.id for row in rows if row.id is not None)
    if repeated := [name for name, count in ids.items() if count > 1]:
        raise DataError(f"{path}: the id {repeated[0]!r} stands {ids[repeated[0]]} times; ids must be unique")
    return rows


def _read_questions(path: str | Path) -> list[_Question]:
    questions = []
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        value = row.value
        turns = value.get("turns", [value["prompt"]] if "prompt" in value else None)
        item_id = _id(value, "question_id", "uid", "id")
        if not isinstance(turns, list) or not turns or item_id is None:
            raise DataError(f"{row.where}: a question needs 'question_id' and 'turns', or 'uid' and 'prompt'")
        category = value.get("category")
        texts = tuple(_content(turn) for turn in turns)
        questions.append(_Question(item_id, texts, category if isinstance(category, str) else None))
    return questions


def _fastchat(row: Json, path: Path) -> _Row:
    choices = row["choices"]
    if not isinstance(choices, list) or not choices:
        raise DataError("'choices' is no list, or an empty one")
    samples = tuple(tuple(_content(turn) for turn in choice["turns"]) for choice in choices)
    return _Row(_id(row, "question_id"), None, str(row.get("model_id", path.stem)), samples)


def _arena(row: Json, path: Path) -> _Row:
    messages = row["messages"]
    texts = {message.get("role"): _content(message) for message in messages if isinstance(message, dict)}
    if not {"user", "assistant"} <= set(texts):
        raise DataError("'messages' holds no user turn, or no assistant turn")
    return _Row(_id(row, "uid", "id"), texts["user"], str(row.get("model", path.stem)), ((texts["assistant"],),))


def _plain(row: Json, path: Path) -> _Row:
    instruction = row.get("instruction", row.get("prompt"))
    output = next(row[key] for key in ("output", "response_list", "responses", "response") if key in row)
    outputs = output if isinstance(output, list) else [output]
    if not isinstance(instruction, str) or not outputs or not all(isinstance(one, str) for one in outputs):
        raise DataError("the instruction and every output must be texts")
    model = next((row[key] for key in ("generator", "model") if isinstance(row.get(key), str)), path.stem)
    category = row.get("category")
    metadata = {key: row[key] for key in ("dataset", "source_id", "datasplit") if isinstance(row.get(key), str)}
    samples = tuple((one,) for one in outputs)
    return _Row(_id(row, "id"), instruction, model, samples, category if isinstance(category, str) else None, metadata)


_READERS: tuple[tuple[str, Callable[[Json, Path], _Row]], ...] = (
    ("choices", _fastchat),
    ("output", _plain),
    ("response_list", _plain),
    ("responses", _plain),
    ("response", _plain),
    ("messages", _arena),
)


def _content(value: object) -> str:
    """A turn's text: Arena-Hard wraps it once or twice."""
    while isinstance(value, Mapping):
        value = value.get("content", value.get("answer"))
    if not isinstance(value, str):
        raise DataError("a turn is no text")
    return value


def _id(row: Json, *keys: str) -> str | None:
    value = next((row[key] for key in keys if key in row), None)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
