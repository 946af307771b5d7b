from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from fixtures.judged import ask, aspects, make_item, reply, token_reply

from ragalign.errors import ConfigError, DataError
from ragalign.judging.files import read_rows, write_rows
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.protocols.mt_bench import MtBench
from ragalign.judging.registry import PROTOCOLS, make_protocol, protocol_of_file
from ragalign.judging.replay import replay
from ragalign.judging.requests import JudgeReply

RANKING = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
GOOD = {
    "ica": reply("8 3"),
    "alpaca-eval-1": reply(RANKING),
    "alpaca-eval-2": token_reply({"m": 0.6, "M": 0.3}),
    "mt-bench": reply("[[8]]"),
    "mt-bench-pairwise": reply("[[A]]"),
    "just-eval": reply(aspects({"helpfulness": "4"})),
    "urial-pairwise": reply('{"choices": {"depth": "A"}}'),
    "arena-hard": reply("[[A>B]]"),
}


# Checkers ask no judge, and reward models reply with numbers: test_protocol_instructions.py and test_reward.py.
OTHERS = {"ifeval", "ifbench", "reward", "reward-pairwise"}


def test_every_protocol_has_a_reply_here() -> None:
    assert set(GOOD) == set(PROTOCOLS) - OTHERS


@pytest.mark.parametrize("name", GOOD)
def test_written_files_open_with_datasets(tmp_path: Path, name: str) -> None:
    protocol = make_protocol(name)
    judged = [
        ask(protocol, request, answer)
        for number, answer in enumerate([GOOD[name], GOOD[name], reply("unreadable")])
        for request in protocol.build(make_item(number))
    ]
    rows = protocol.record(judged)
    path = tmp_path / f"judged.{protocol.file_format}"
    write_rows(path, rows, protocol.file_format)
    opened = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(opened) == len(rows)
    assert set(rows[0]) <= set(opened.column_names)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("bad", [JudgeReply("j", {}), JudgeReply("j", {"message": {"content": None}}), reply("", "j")])
def test_an_empty_reply_is_unscored(name: str, bad: JudgeReply) -> None:
    protocol = make_protocol(name)
    for request in protocol.build(make_item()):
        verdict = protocol.parse(request, bad)
        assert verdict.reason
        assert verdict.judge == "j"


@pytest.mark.parametrize("name", GOOD)
def test_a_refusal_is_unscored(name: str) -> None:
    protocol = make_protocol(name)
    refusal = JudgeReply("j", {"message": {"content": None, "refusal": "I will not."}})
    assert protocol.parse(protocol.build(make_item())[0], refusal).reason == "the judge refused: I will not."


@pytest.mark.parametrize("name", GOOD)
def test_requests_have_distinct_stable_ids(name: str) -> None:
    protocol = make_protocol(name)
    requests = [request for number in range(3) for request in protocol.build(make_item(number))]
    assert len({request.id for request in requests}) == len(requests)
    assert requests == [request for number in range(3) for request in make_protocol(name).build(make_item(number))]
    for request in requests:
        body = request.as_body()
        assert {"messages", "temperature", "max_tokens"} <= set(body)
        assert all(message["content"] for message in body["messages"])


@pytest.mark.parametrize("name", GOOD)
def test_our_own_prompts_have_no_open_placeholder(name: str) -> None:
    for request in make_protocol(name).build(make_item()):
        text = "".join(turn.content for turn in request.messages)
        for mark in ("{question", "{answer", "{output_", "{instruction", "${", "{$", "{prompt", "{ref_", "{{"):
            assert mark not in text


def test_unknown_protocols_and_options_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'alpaca': choose one of ica"):
        make_protocol("alpaca")
    with pytest.raises(ConfigError, match="the protocol mt-bench has no option both_orders"):
        make_protocol("mt-bench", both_orders=True)


def test_every_row_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "m_vs_b_autoeval.jsonl"
    good = json.dumps({"autoeval_text_list": ["9 3", "3 9"]})
    path.write_text(
        f'{good}\n{{"autoeval_text_list": ["8 \n[1]\n\n{{"other": 1}}\n{{"autoeval_text_list": []}}\n{good}\n'
    )
    replayed = replay(Ica(), [path])
    assert [problem.where.removeprefix(str(path)) for problem in replayed.problems] == [
        " line 2",
        " line 3",
        " line 5",
        " line 6",
    ]
    (figures,) = Ica().aggregate(replayed.verdicts)
    assert (figures.model, figures.n, figures.n_unscored) == ("m", 4, 4)
    assert sum(figures.reasons.values()) == 4


def test_a_broken_row_of_a_file_with_several_models_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "single.jsonl"
    row = {"question_id": 1, "judge": ["j", "p"], "turn": 1, "judgment": "[[5]]", "score": 5}
    path.write_text("\n".join([json.dumps({**row, "model": "a"}), json.dumps({**row, "model": "b"}), "{"]))
    table = MtBench().aggregate(replay(MtBench(), [path]).verdicts)
    assert [(figures.model, figures.n, figures.n_unscored) for figures in table] == [
        ("a", 1, 0),
        ("b", 1, 0),
        ("(unknown)", 0, 1),
    ]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "rows", [[{}], [{"autoeval_text_list": 3}], ["x", 1, None], [{"games": [], "uid": 1, "model": "m"}]]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, rows: list[object]) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=f"has no judgement of the protocol {PROTOCOLS[name].name}: .*entry 1"):
        replay(make_protocol(name), [path])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("[ ]", "is an empty JSON array"),
        ('[{"a": 1}', "JSON array that cannot be read: line 1"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "x.jsonl"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_a_byte_order_mark_and_odd_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "1\xe2\x80\xa82"}\r\n{"a": 2}')
    assert [row.value for row in read_rows(path)] == [{"a": "1\u20282"}, {"a": 2}]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_rows(path, [{"a": 1}], "json")
    with pytest.raises(ValueError):
        write_rows(path, [{"a": float("nan")}], "json")
    assert json.loads(path.read_text()) == [{"a": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_pairwise_files_of_mt_bench_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"question_id": 1, "model_1": "a", "model_2": "b"}\n')
    assert protocol_of_file("mt-bench", path) == "mt-bench-pairwise"
    path.write_text('{"question_id": 1, "model": "a"}\n')
    assert protocol_of_file("mt-bench", path) == "mt-bench"
    assert protocol_of_file("ica", tmp_path / "absent") == "ica"
