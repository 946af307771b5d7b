"""Reads answer files of any upstream tool and joins them into items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ragalign.errors import DataError
from ragalign.judging.files import read_rows
from ragalign.judging.pairing import Prompted, pair
from ragalign.judging.requests import Answer, Item, Json
from ragalign.questions import BadRowError, is_empty, read_conversation, read_question


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of an answer file. `samples` are answers to the same prompt; `bare` is the prompt without passages."""

    id: str | None
    instruction: str | None
    model: str
    samples: tuple[tuple[str, ...], ...]
    bare: str | None = None
    category: str | None = None
    metadata: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question: the prompt's id, the user's messages (one per turn) and the category."""

    id: str
    turns: tuple[str, ...]
    category: str | None


def load_items(
    answers: str | Path,
    *,
    baseline: str | Path | None = None,
    questions: str | Path | None = None,
    references: str | Path | None = None,
) -> list[Item]:
    """Join answer files into items, in the order of `answers`.

    `ragalign.questions` defines the prompt of a row, which includes an `input`; `ragalign.judging.pairing` matches the
    answers of the two files. Only the first sample of a baseline is used.

    Args:
        answers: the judged model's answers, in the format of any upstream tool.
        baseline: the answers to compare with.
        questions: FastChat's or Arena-Hard's questions, for answer files without them.
        references: reference answers in FastChat's format.

    Raises:
        DataError: a file cannot be read, an answer has no question or no baseline answer, or equal prompts
            cannot be told apart.
    """
    rows = _read(answers)
    asked = {each.id: each for each in read_asked(questions)} if questions is not None else {}
    known = {row.id: row for row in _read(references)} if references is not None else {}
    ids = [row.id if row.id is not None else str(position) for position, row in enumerate(rows)]
    prompts = [_turns(answers, row, item_id, asked, questions) for row, item_id in zip(rows, ids, strict=True)]
    opponents = _opponents(rows, [turns[0] for turns in prompts], answers, baseline)
    items = []
    for position, (row, item_id, turns) in enumerate(zip(rows, ids, prompts, strict=True)):
        question = asked.get(item_id)
        opponent = opponents[position] if opponents else None
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
    """Categories by question id, from FastChat's or Arena-Hard's questions.

    Raises:
        DataError: the file cannot be read, or a row is not a question.
    """
    return {question.id: question.category for question in read_asked(questions) if question.category}


def read_asked(path: str | Path) -> list[AskedQuestion]:
    """Read a question file of FastChat, Arena-Hard or any other form that `ragalign.questions` reads, with ids.

    Raises:
        DataError: the file cannot be read, or a row is not a question.
    """
    questions = []
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        value = row.value
        item_id = _id(value, *_ID_FIELDS)
        try:
            question = read_question(value)
        except BadRowError as error:
            raise DataError(f"{row.where}: {error.reason}") from None
        if item_id is None:
            raise DataError(f"{row.where}: a question needs an id: 'question_id', 'uid' or 'id'")
        category = value.get("category")
        turns = (question.as_one_text, *question.further)
        questions.append(AskedQuestion(item_id, turns, category if isinstance(category, str) else None))
    return questions


def _turns(
    path: str | Path, row: _Row, item_id: str, asked: Mapping[str, AskedQuestion], questions: str | Path | None
) -> tuple[str, ...]:
    """The user's messages in the conversation that a row answers."""
    if item_id in asked:
        return asked[item_id].turns
    if row.instruction is not None:
        return (row.instruction,)
    hint = "" if questions is not None else "; give the question file as well"
    raise DataError(f"{path}: no question has the id {item_id!r}{hint}")


def _opponents(
    rows: Sequence[_Row], prompts: Sequence[str], answers: str | Path, baseline: str | Path | None
) -> list[_Row] | None:
    """The baseline's answer to the prompt of each row."""
    if baseline is None:
        return None
    others = _read(baseline)
    try:
        places = pair(
            [Prompted(row.id, prompt, row.bare) for row, prompt in zip(rows, prompts, strict=True)],
            [Prompted(row.id, row.instruction, row.bare) for row in others],
        )
    except DataError as error:
        raise DataError(f"{answers} and {baseline}: {error}") from None
    found = []
    for number, place in enumerate(places):
        if place is None:
            item_id = rows[number].id or str(number)
            raise DataError(f"{baseline} has no answer to the prompt {item_id!r}: {prompts[number][:60]!r}")
        found.append(others[place])
    return found


def _read(path: str | Path) -> list[_Row]:
    rows = []
    for row in read_rows(path):
        if row.value is None:
            raise DataError(f"{row.where}: {row.problem}")
        value = row.value
        readers = [(key, reader) for key, reader in _READERS if key in value]
        reader = next((reader for key, reader in readers if value[key] is not None), readers[0][1] if readers else None)
        if reader is None:
            expected = ", ".join(f"{key!r}" for key, _ in _READERS)
            raise DataError(f"{row.where}: not an answer: none of the fields {expected}")
        try:
            rows.append(reader(value, Path(path)))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None
    ids = Counter(row.id for row in rows if row.id is not None)
    if repeated := [name for name, count in ids.items() if count > 1]:
        raise DataError(f"{path}: the id {repeated[0]!r} occurs {ids[repeated[0]]} times; ids must be unique")
    return rows


def _fastchat(row: Json, path: Path) -> _Row:
    choices = row["choices"]
    if not isinstance(choices, list) or not choices:
        raise DataError("'choices' is not a list, or is empty")
    samples = tuple(_choice(choice) for choice in choices)
    return _Row(_id(row, *_ID_FIELDS), None, str(row.get("model_id", path.stem)), samples)


def _choice(choice: object) -> tuple[str, ...]:
    turns = choice.get("turns") if isinstance(choice, Mapping) else None
    if not isinstance(turns, list) or not turns:
        raise DataError("'turns' of an entry of 'choices' is missing, empty or not a list")
    return tuple(_content(turn) for turn in turns)


def _arena(row: Json, path: Path) -> _Row:
    """A conversation that ends with the answer that is judged."""
    messages = row["messages"]
    if isinstance(messages, list):
        messages = [
            {**message, "content": _content(message)} if isinstance(message.get("content"), Mapping) else message
            for message in messages
            if isinstance(message, Mapping)
        ]
    try:
        _, turns = read_conversation("messages", messages)
        if not turns or turns[-1][0] != "assistant":
            raise DataError("'messages' does not end with an assistant turn")
        question = read_question({**row, "messages": messages[:-1]})
    except BadRowError as error:
        raise DataError(f"the conversation cannot be read: {error.reason}") from None
    model = next((row[key] for key in ("model", "generator") if isinstance(row.get(key), str)), path.stem)
    return _Row(_id(row, *_ID_FIELDS), question.as_one_text, model, ((turns[-1][1],),), question.bare)


def _plain(row: Json, path: Path) -> _Row:
    field = next((key for key in _OUTPUT_FIELDS if row.get(key) is not None), None)
    output = row[field] if field is not None else None
    outputs = [text for text in (output if isinstance(output, list) else [output]) if isinstance(text, str)]
    if not outputs or (isinstance(output, list) and len(outputs) < len(output)):
        raise DataError("the instruction and every output must be strings")
    try:
        question = read_question(row, metadata=_OUTPUT_FIELDS)
    except BadRowError as error:
        raise DataError(f"the instruction cannot be read: {error.reason}") from None
    model = next((row[key] for key in ("generator", "model") if isinstance(row.get(key), str)), path.stem)
    category = row.get("category")
    metadata = {key: row[key] for key in ("dataset", "source_id", "datasplit") if isinstance(row.get(key), str)}
    return _Row(
        _id(row, *_ID_FIELDS),
        question.as_one_text,
        model,
        tuple((text,) for text in outputs),
        question.bare,
        category if isinstance(category, str) else None,
        metadata,
    )


_OUTPUT_FIELDS = ("output", "response_list", "responses", "response", "completion", "answer")
# Not the order of question files: the tools that write these rows give `id` another meaning where they have both.
_ID_FIELDS = ("question_id", "uid", "id", "prompt_id")
_READERS: tuple[tuple[str, Callable[[Json, Path], _Row]], ...] = (
    ("choices", _fastchat),
    *((key, _plain) for key in _OUTPUT_FIELDS),
    ("messages", _arena),
)


def _content(value: object) -> str:
    """A turn's text, which Arena-Hard wraps in one or two objects."""
    while isinstance(value, Mapping):
        value = value.get("content", value.get("answer"))
    if not isinstance(value, str):
        raise DataError("a turn is not a string")
    return value


def _id(row: Json, *keys: str) -> str | None:
    value = next((row[key] for key in keys if not is_empty(row.get(key))), None)
    if isinstance(value, float) and value.is_integer():  # pandas turns whole numbers with gaps into floats
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
