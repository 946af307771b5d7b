from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from fixtures.judged import make_item

from ragalign.errors import ConfigError, DataError
from ragalign.judging.answer_files import FORM_OF, write_answers
from ragalign.judging.answers import load_items
from ragalign.judging.registry import PROTOCOLS, make_protocol
from ragalign.judging.requests import Answer, Item


def test_ica_answers_join_their_baseline(shared_data: Path) -> None:
    folder = shared_data / "ica"
    items = load_items(
        folder / "llama2-13B_icl-oasstgpt_outputs_temp0.7.jsonl", baseline=folder / "davinci003_results.jsonl"
    )
    assert len(items) == 1500
    assert [item.sample for item in items[:6]] == [0, 1, 2, 3, 4, 0]
    assert len({item.id for item in items}) == 300
    assert {item.baseline.model for item in items if item.baseline} == {"davinci003_results"}


def test_alpaca_eval_outputs(shared_data: Path) -> None:
    path = shared_data / "alpaca_eval" / "v2" / "gpt4_1106_preview.model_outputs.json"
    items = load_items(path, baseline=path)
    assert len(items) == 805
    assert all(item.baseline is not None and item.answer.text == item.baseline.text for item in items)
    assert items[0].answer.model == "gpt4_1106_preview"
    assert items[0].metadata == {"position": 0, "dataset": "helpful_base"}


def test_just_eval_outputs(shared_data: Path) -> None:
    items = load_items(shared_data / "just_eval" / "gpt-3.5-turbo-0301.to_eval.json")
    assert [(items[n].id, items[n].category) for n in (0, 999)] == [("0", "regular"), ("999", "safety")]


def test_fastchat_answers_need_their_questions(shared_data: Path) -> None:
    folder = shared_data / "mt_bench"
    answers = folder / "reference_answer_gpt-4.jsonl"
    items = load_items(answers, questions=folder / "question.jsonl", references=answers)
    assert [len(items), len(items[0].turns), items[0].category] == [30, 2, "reasoning"]
    assert items[0].reference == items[0].answer.turns
    with pytest.raises(DataError, match="no question has the id '101'; give the question file"):
        load_items(answers)


@pytest.mark.parametrize("form", sorted(set(FORM_OF.values())))
def test_written_answers_read_back(tmp_path: Path, form: str) -> None:
    one = Item("7", ("Why\n{x}?",), Answer("model", ("Because “é”",)), Answer("base", ("No",)))
    path = tmp_path / "model.json"
    write_answers(path, [one], form)  # type: ignore[arg-type]
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 7, "turns": ["Why\n{x}?"], "category": "writing"}))
    (read,) = load_items(path, questions=questions if form == "mt-bench" else None)
    assert (read.turns, read.answer) == (one.turns, one.answer)
    if form in ("mt-bench", "just-eval", "arena-hard"):
        assert read.id == "7"
    opened = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(opened) == 1


def test_several_samples_stay_together(tmp_path: Path) -> None:
    items = [Item("1", ("Q",), Answer("model", (text,)), sample=n) for n, text in enumerate("ab")]
    path = tmp_path / "model.jsonl"
    write_answers(path, items, "ica")
    assert json.loads(path.read_text()) == {"prompt": "Q", "response_list": ["a", "b"]}
    assert [item.answer.text for item in load_items(path)] == ["a", "b"]


def test_our_own_completions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"id": "q1", "instruction": "Q1", "response": "A1", "finish_reason": "stop"},
        {"id": "q2", "instruction": "Q2", "response": "A2", "responses": ["A2", "A3"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = load_items(path)
    assert [(item.id, item.sample, item.answer.text) for item in items] == [
        ("q1", 0, "A1"),
        ("q2", 0, "A2"),
        ("q2", 1, "A3"),
    ]
    assert items[0].answer.model == "mine"


def test_the_baseline_is_joined_by_id_before_text(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ours.write_text(json.dumps([{"id": n, "instruction": "same", "output": f"o{n}"} for n in range(2)]))
    theirs.write_text(json.dumps([{"id": n, "instruction": "same", "output": f"t{n}"} for n in (1, 0)]))
    items = load_items(ours, baseline=theirs)
    assert [item.baseline.text for item in items if item.baseline] == ["t0", "t1"]


def test_a_missing_baseline_answer_is_an_error(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ours.write_text(json.dumps([{"instruction": q, "output": "o"} for q in ("a", "b")]))
    theirs.write_text(json.dumps([{"instruction": "a", "output": "t"}]))
    with pytest.raises(DataError, match=r"theirs\.json has no answer to the prompt '1': 'b'"):
        load_items(ours, baseline=theirs)


def written(path: Path, *rows: Any) -> Path:
    content = json.dumps(list(rows)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


PASSAGE = {"instruction": "Which year?", "input": "Rebuilt in 1871.", "output": "1871"}


@pytest.mark.parametrize("protocol", sorted(FORM_OF))
def test_the_judge_sees_the_passage(tmp_path: Path, protocol: str) -> None:
    path = written(tmp_path / "a.json.gz", PASSAGE)
    [item] = load_items(path, baseline=path)
    assert item.instruction == "Which year?\nRebuilt in 1871."
    requests = make_protocol(protocol).build(item)
    assert requests
    assert all("Rebuilt in 1871." in str(request.messages) for request in requests)


@pytest.mark.parametrize("passage", ["input", "context", "passage"])
@pytest.mark.parametrize("question", ["instruction", "prompt", "question", "query"])
@pytest.mark.parametrize("answer", ["output", "response", "completion", "answer"])
def test_every_form_of_passage(tmp_path: Path, question: str, passage: str, answer: str) -> None:
    path = written(tmp_path / "a.json", {question: "q", passage: "c", answer: "a"})
    assert [(item.turns, item.answer.text) for item in load_items(path)] == [(("q\nc",), "a")]


def test_equal_prompts_pair_in_order(tmp_path: Path) -> None:
    ours = written(tmp_path / "o.json", *({"instruction": q, "output": f"o{n}"} for n, q in enumerate("sasbs")))
    theirs = written(tmp_path / "t.json", *({"instruction": q, "output": f"t{n}"} for n, q in enumerate("bsssa")))
    pairs = [(item.answer.text, item.baseline.text) for item in load_items(ours, baseline=theirs) if item.baseline]
    assert pairs == [("o0", "t1"), ("o1", "t4"), ("o2", "t2"), ("o3", "t0"), ("o4", "t3")]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_equal_prompts_that_cannot_be_paired_are_refused(tmp_path: Path, n: int) -> None:
    ours = written(tmp_path / "o.json", *({"instruction": "same", "output": f"o{k}"} for k in range(3)))
    theirs = written(tmp_path / "t.json", *({"instruction": "same", "output": f"t{k}"} for k in range(n)))
    with pytest.raises(
        DataError, match=rf"the prompt 'same' occurs 3 and {n} times, .* give the rows of both files id"
    ):
        load_items(ours, baseline=theirs)


@pytest.mark.parametrize("with_passage", ["ours", "theirs", "both"])
def test_passages_tell_equal_instructions_apart(tmp_path: Path, with_passage: str) -> None:
    def rows(side: str, order: str) -> list[dict[str, str]]:
        has = with_passage in (side, "both")
        return [{"instruction": "Sum it up.", "output": f"{side} {p}"} | ({"input": p} if has else {}) for p in order]

    order = "bac" if with_passage == "both" else "abc"
    ours, theirs = (
        written(tmp_path / "o.json", *rows("ours", "abc")),
        written(tmp_path / "t.json", *rows("theirs", order)),
    )
    pairs = [(item.answer.text, item.baseline.text) for item in load_items(ours, baseline=theirs) if item.baseline]
    assert pairs == [(f"ours {p}", f"theirs {p}") for p in "abc"]


def test_questions_of_any_form(tmp_path: Path) -> None:
    answers = tmp_path / "a.jsonl"
    answers.write_text(json.dumps({"question_id": 1, "model_id": "m", "choices": [{"turns": ["a"]}]}))
    for row in ({"question": "q", "context": "c"}, {"instruction": "q", "input": "c"}, {"turns": ["q\nc"]}):
        questions = written(tmp_path / "q.json", {"id": 1, **row})
        assert [item.turns for item in load_items(answers, questions=questions)] == [("q\nc",)]
    with pytest.raises(DataError, match="a question needs an id"):
        load_items(answers, questions=written(tmp_path / "q.json", {"question": "q"}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "line 1: not an answer"),
        ({"instruction": "q", "output": None}, "line 1: the instruction and every output must be strings"),
        ({"output": "x"}, "line 1: the instruction"),
        ({"question_id": 1, "choices": []}, "line 1: 'choices' is not a list"),
        ({"question_id": 1, "choices": [None]}, "line 1: 'turns' of an entry of 'choices' is missing"),
        ({"question_id": 1, "choices": [{"index": 0}]}, "line 1: 'turns' of an entry of 'choices' is missing"),
        ({"question_id": 1, "choices": [{"turns": []}]}, "line 1: 'turns' of an entry of 'choices' is missing"),
        ({"uid": "1", "messages": [{"role": "user", "content": "q"}]}, "does not end with an assistant turn"),
        ({"uid": "1", "messages": []}, "does not end with an assistant turn"),
        ({"uid": "1", "messages": [{"role": "assistant", "content": "a"}]}, "the conversation is empty"),
        ({"messages": None}, "line 1: the conversation cannot be read: the field 'messages' is null"),
        ({"messages": [1]}, "line 1: "),
        ("x", "line 1: not a JSON object"),
    ],
)
def test_bad_rows_have_their_line(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        load_items(path)


def test_ids_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": 1, "instruction": "q", "output": "o"}] * 2))
    with pytest.raises(DataError, match="the id '1' occurs 2 times"):
        load_items(path)


def test_unknown_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown answer format 'csv'"):
        write_answers(tmp_path / "x", [make_item()], "csv")  # type: ignore[arg-type]


def test_every_protocol_has_a_form() -> None:
    assert set(FORM_OF) == set(PROTOCOLS) - {
        "ifeval",
        "ifbench",
        "reward",
        "reward-pairwise",
    }  # which have no upstream tool


@pytest.mark.parametrize("name", ["id", "question_id", "prompt_id", "uid"])
@pytest.mark.parametrize("kind", [int, float, str])
def test_answers_to_equal_instructions_pair_by_any_id(tmp_path: Path, name: str, kind: type) -> None:
    def rows(folder: str, numbers: tuple[int, ...]) -> Path:
        path = tmp_path / folder
        lines = [{name: kind(n), "instruction": "Summarise.", "output": f"{folder}{n}"} for n in numbers]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    items = load_items(rows("a", (1, 2)), baseline=rows("b", (2, 1)))
    assert [(item.answer.text, item.baseline.text) for item in items if item.baseline] == [("a1", "b1"), ("a2", "b2")]


def test_a_conversation_is_judged_by_its_last_answer(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "more"), ("assistant", {"answer": "b"})]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"output": None, "messages": [{"role": r, "content": c} for r, c in turns]}))
    [item] = load_items(path)
    assert (item.turns, item.answer.turns) == (("q\na\nmore",), ("b",))


def test_half_characters_of_models_are_replaced(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a\ud83d"}, {"instruction": "r", "output": "\ude00"}]
    for name, content in (("a.json", json.dumps(rows)), ("a.jsonl", "\n".join(map(json.dumps, rows)))):
        path = tmp_path / name
        path.write_text(content)
        assert [item.answer.text for item in load_items(path)] == ["a\ufffd", "\ufffd"]


@pytest.mark.parametrize("number", ["1" * 5000, "[" * 100_000])
def test_numbers_and_nesting_beyond_pythons_limits_have_their_line(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"instruction": "q", "output": "a", "n": {number}}}\n')
    with pytest.raises(DataError, match="line 1: not JSON: "):
        load_items(path)
    path.write_text(f'[{{"instruction": "q", "output": "a", "n": {number}}}]\n')
    with pytest.raises(DataError, match="a JSON array that cannot be read: "):
        load_items(path)
