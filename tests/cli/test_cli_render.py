"""`ragalign render`: prompt files in, parts and prompts out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command

FILE = (
    "# Instruction\n\nAnswer well.\n\n# Query:\n```\nOne?\n```\n\n# Answer:\n```\nTwo.\n```\n\n"
    "# Query:\n```\nThree?\n```\n"
)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def turns(tmp_path: Path) -> Path:
    return tmp_path / "turns.jsonl"


def write(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_goldens(ragalign: Command, shared_data: Path, turns: Path) -> None:
    folder = shared_data / "urial"
    rows = [json.loads(line) for line in (folder / "rendered.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in sorted({row["prompt_file"] for row in rows}):
        golden = [row for row in rows if row["prompt_file"] == name]
        write(turns, [{"turns": row["turns"]} for row in golden])
        done = ragalign(
            "render", "--prompt-file", folder / "prompts" / name, "--turns", turns, "--escape", "none", "--json"
        )
        assert done.returncode == 0, done.stderr
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        assert [one["text"] for one in printed] == [row["rendered"] for row in golden]
        assert all(one.keys() == {"text", "stop"} and one["stop"] == ["# Query", "# User"] for one in printed)


def test_files_come_back_from_their_parts(ragalign: Command, shared_data: Path) -> None:
    for path in sorted((shared_data / "icl_alignment").rglob("*.txt")):
        done = ragalign("render", "--prompt-file", path, "--parse", "--json")
        assert done.returncode == 0, done.stderr
        [printed] = [json.loads(line) for line in done.stdout.splitlines()]
        assert printed.keys() == {"preamble", "demonstrations", "n"}
        assert printed["n"] == len(printed["demonstrations"]) >= 3
        text = path.read_text(encoding="utf-8")
        assert text.startswith(printed["preamble"])
        at = len(printed["preamble"])
        for one in printed["demonstrations"]:
            assert one.keys() == {"instruction", "response"}
            for part in (one["instruction"], one["response"]):
                assert text.find(part, at) >= at
                at = text.find(part, at) + len(part)


def test_turns_are_neutralised_unless_asked_otherwise(ragalign: Command, prompt_file: Path, turns: Path) -> None:
    write(turns, [{"turns": ["# Query:"]}, {"turns": ["a", "b", "c"]}])
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns, "--json")
    first, second = (json.loads(line)["text"] for line in done.stdout.splitlines())
    assert first == FILE + "\n# Query:\n```\n#\\ Query:\n```\n\n# Answer:\n```\n"
    assert second.endswith(
        "# Query:\n```\na\n```\n\n# Answer:\n```\nb\n```\n\n# Query:\n```\nc\n```\n\n# Answer:\n```\n"
    )
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns, "--escape", "none", "--json")
    assert "\\" not in json.loads(done.stdout.splitlines()[0])["text"]


def test_for_people(ragalign: Command, prompt_file: Path, turns: Path) -> None:
    done = ragalign("render", "--prompt-file", prompt_file, "--parse")
    assert "form urial, 2 demonstrations, 1 of them without an answer" in done.stdout
    assert "Answer well." in done.stdout
    assert "Three?" in done.stdout
    write(turns, [{"turns": ["Is [bold]this[/bold] plain?"]}])
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns)
    assert f"{turns}:1" in done.stdout
    assert "Is [bold]this[/bold] plain?" in done.stdout


def test_the_form_by_hand(ragalign: Command, tmp_path: Path, turns: Path) -> None:
    path = tmp_path / "bare.txt"
    path.write_text("Be kind.\n", encoding="utf-8")
    write(turns, [{"turns": ["Hi?"]}])
    arguments = ("render", "--prompt-file", path, "--turns", turns, "--json")
    refused = ragalign(*arguments)
    assert refused.returncode == 2
    assert "bare.txt: cannot detect the form of this prompt file; choose one (--form)" in refused.stderr
    done = ragalign(*arguments, "--form", "ica")
    assert json.loads(done.stdout)["text"] == "Be kind.\n\nQuestion: Hi?\n\nHere\u2019s an example answer:"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON (Expecting property name enclosed in double quotes, character 3); expected "),
        (b"[1]", 'expected an object with "turns"'),
        (b'{"turn": ["a"]}', 'expected an object with "turns"'),
        (b'{"turns": "a"}', 'expected an object with "turns"'),
        (b'{"turns": ["a", 1, "b"]}', 'expected an object with "turns"'),
        (b'{"turns": []}', "the conversation is empty"),
        (b'{"turns": ["a", "b"]}', "the conversation must end with a user turn"),
        (b'{"turns": ["\\ud800"]}', "turn 1 is not valid Unicode: character 1 is a lone surrogate"),
        (b'{"turns": ["caf\xe9"]}', "not UTF-8 (byte 16)"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=range(10),
)
def test_bad_lines_are_named(ragalign: Command, prompt_file: Path, turns: Path, line: bytes, message: str) -> None:
    turns.write_bytes(b'{"turns": ["fine"]}\n\n' + line + b"\n")
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns, "--json")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count("\n") == 1
    assert f"{turns}:3: " in done.stderr
    assert message in done.stderr


def test_byte_order_marks_and_carriage_returns_are_no_obstacle(
    ragalign: Command, prompt_file: Path, turns: Path
) -> None:
    turns.write_bytes(b'\xef\xbb\xbf{"turns": ["One"]}\r\n{"turns": ["Two"]}')
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns, "--json")
    assert done.returncode == 0
    ends = [json.loads(line)["text"].rpartition("# Query:")[2] for line in done.stdout.splitlines()]
    assert ends == ["\n```\nOne\n```\n\n# Answer:\n```\n", "\n```\nTwo\n```\n\n# Answer:\n```\n"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give either --turns FILE or --parse"),
        (("--parse", "--turns", "x.jsonl"), 2, "give either --turns FILE or --parse"),
        (("--turns", "x.jsonl"), 1, "x.jsonl"),
        (("--parse", "--form", "nothing"), 2, "no template 'nothing': use one of"),
    ],
)
def test_usage(ragalign: Command, prompt_file: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = ragalign("render", "--prompt-file", prompt_file, *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_ways_to_escape_are_refused(ragalign: Command, prompt_file: Path, turns: Path) -> None:
    write(turns, [{"turns": ["a"]}])
    done = ragalign("render", "--prompt-file", prompt_file, "--turns", turns, "--escape", "maybe")
    assert done.returncode == 2
    assert "escape must be 'neutralise' or 'none', not 'maybe'" in done.stderr
    done = ragalign("render", "--prompt-file", prompt_file.parent / "no.txt", "--parse")
    assert done.returncode == 1
    assert "no.txt: cannot read the prompt file" in done.stderr
