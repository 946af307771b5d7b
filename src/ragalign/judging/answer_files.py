"""Writes answer files of the upstream tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragalign.errors import ConfigError
from ragalign.judging.files import write_rows
from ragalign.judging.requests import Item

AnswerForm: TypeAlias = Literal["alpaca-eval", "mt-bench", "just-eval", "ica", "arena-hard"]
"""Answer file formats: outputs of AlpacaEval and just-eval, answers of FastChat and Arena-Hard, results of ICA."""

FORM_OF: Mapping[str, AnswerForm] = {
    "ica": "ica",
    "alpaca-eval-1": "alpaca-eval",
    "alpaca-eval-2": "alpaca-eval",
    "mt-bench": "mt-bench",
    "mt-bench-pairwise": "mt-bench",
    "just-eval": "just-eval",
    "urial-pairwise": "alpaca-eval",
    "arena-hard": "arena-hard",
}
"""The answer file format of each protocol."""


def write_answers(path: str | Path, items: Iterable[Item], form: AnswerForm) -> None:
    """Write the answers of items in an upstream tool's format.

    Raises:
        ConfigError: the format is unknown.
    """
    if form not in _WRITERS:
        raise ConfigError(f"unknown answer format {form!r}: choose one of {', '.join(_WRITERS)}")
    writer, file_format = _WRITERS[form]
    write_rows(path, writer(list(items)), file_format)


def _as_outputs(items: list[Item]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": item.metadata.get("dataset", ""),
            "instruction": item.instruction,
            "output": item.answer.text,
            "generator": item.answer.model,
        }
        for item in items
    ]


def _as_just_eval(items: list[Item]) -> list[dict[str, Any]]:
    return [{"id": _number(item.id), **row} for item, row in zip(items, _as_outputs(items), strict=True)]


def _as_fastchat(items: list[Item]) -> list[dict[str, Any]]:
    return [
        {
            "question_id": _number(samples[0].id),
            "answer_id": f"{samples[0].answer.model}-{samples[0].id}",
            "model_id": samples[0].answer.model,
            "choices": [{"index": item.sample, "turns": list(item.answer.turns)} for item in samples],
            "tstamp": 0.0,
        }
        for samples in _by_prompt(items)
    ]


def _as_ica(items: list[Item]) -> list[dict[str, Any]]:
    rows = []
    for samples in _by_prompt(items):
        texts = [item.answer.text for item in samples]
        answers = {"response_list": texts} if len(texts) > 1 else {"response": texts[0]}
        rows.append({"prompt": samples[0].instruction, **answers})
    return rows


def _as_arena(items: list[Item]) -> list[dict[str, Any]]:
    return [
        {
            "uid": item.id,
            "ans_id": f"{item.answer.model}-{item.id}",
            "model": item.answer.model,
            "messages": [
                {"role": "user", "content": item.instruction},
                {"role": "assistant", "content": {"answer": item.answer.text}},
            ],
            "tstamp": 0.0,
            "metadata": {},
        }
        for item in items
    ]


def _by_prompt(items: list[Item]) -> list[list[Item]]:
    prompts: dict[str, list[Item]] = {}
    for item in items:
        prompts.setdefault(item.id, []).append(item)
    return list(prompts.values())


def _number(item_id: str) -> int | str:
    return int(item_id) if item_id.isascii() and item_id.isdigit() else item_id


_WRITERS: Mapping[AnswerForm, tuple[Callable[[list[Item]], list[dict[str, Any]]], Literal["json", "jsonl"]]] = {
    "alpaca-eval": (_as_outputs, "json"),
    "mt-bench": (_as_fastchat, "jsonl"),
    "just-eval": (_as_just_eval, "json"),
    "ica": (_as_ica, "jsonl"),
    "arena-hard": (_as_arena, "jsonl"),
}
