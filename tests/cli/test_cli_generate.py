"""`ragalign generate`, `chat` and `demo` with a real model through transformers and vLLM."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.command import Command
from fixtures.scripted_server import ScriptedServer

from ragalign.aligner import Aligner
from ragalign.runs import OutputFile

DECODING = ("--backend", "transformers", "--max-new-tokens", "8", "--temperature", "0")


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "q.jsonl"
    rows = [{"id": f"q{n}", "instruction": f"Tell me about the number {n}."} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_in_a_file_out_and_nothing_twice(
    ragalign: Command, starter_index: Path, tiny_model: Path, queries: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.jsonl"
    arguments = ("generate", starter_index, "--recipe", "ica", "--model", tiny_model, "--queries", queries)
    first = ragalign(*arguments, "--out", output, *DECODING, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["n_written"] == 6
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(one["id"] for one in written) == [f"q{n}" for n in range(6)]
    assert all(one["n_output_tokens"] <= 8 and one["demonstrations"] for one in written)
    again = ragalign(*arguments, "--out", output, *DECODING, "--json")
    assert json.loads(again.stdout) | {"seconds": 0} == {
        "n_written": 0, "n_present": 6, "n_failed": 0, "seconds": 0, "out": str(output)
    }  # fmt: skip
    assert len(output.read_text().splitlines()) == 6


@pytest.mark.parametrize("content", [b'{"my":"notes"}', b'{"my":"notes"}\n', b"\n", b"\x00", b'{"id": "q1", "in'])
def test_a_foreign_file_is_refused_before_a_model_is_loaded(
    ragalign: Command, starter_index: Path, queries: Path, tmp_path: Path, content: bytes
) -> None:
    output = tmp_path / "p.json"
    output.write_bytes(content)
    run = ragalign("generate", starter_index, "--model", "no/such-model", "--queries", queries, "--out", output)
    assert run.returncode == 1
    assert "p.json: line 1" in run.stderr
    assert "was not written by this command" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert output.read_bytes() == content


def test_a_second_process_on_one_output_is_refused(
    ragalign: Command, starter_index: Path, tiny_model: Path, queries: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a.jsonl"
    with OutputFile(output, {}, ("id",)) as held:
        held.append({"id": "1"})
        before = output.read_bytes()
        run = ragalign("generate", starter_index, "--model", tiny_model, "--queries", queries, "--out", output)
    assert run.returncode == 1
    assert "another process is writing" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert output.read_bytes() == before


def test_interrupted_it_loses_nothing_and_goes_on(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    queries, output = tmp_path / "many.jsonl", tmp_path / "a.jsonl"
    rows = [{"id": f"q{n}", "instruction": f"Tell me about the number {n}."} for n in range(64)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "generate", str(starter_index), "--model", str(tiny_model), "--queries", str(queries), "--out", str(output),
        "--backend", "transformers", "--max-new-tokens", "64",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from ragalign_cli.main import main; main()", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (output.exists() and output.read_text().count("\n") >= 8):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    n_before = output.read_text().count("\n")
    assert 8 <= n_before < 64
    run = ragalign(*arguments)
    assert run.returncode == 0, run.stderr
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert sorted(ids) == sorted(f"q{n}" for n in range(64))
    assert f"{n_before} existed" in run.stderr


def test_one_question_as_json(ragalign: Command, starter_index: Path, tiny_model: Path) -> None:
    run = ragalign("chat", starter_index, "Why is the sky blue?", "--model", tiny_model, *DECODING, "--json")
    answer = json.loads(run.stdout)
    assert isinstance(answer["response"], str)
    assert answer["prompt"]["demonstrations"]


def test_a_conversation_goes_on_from_turn_to_turn(
    ragalign: Command, starter_index: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\nAnd then?\n/reset\nBye\n\n"))
    run = ragalign("chat", starter_index, "--model", tiny_model, *DECODING)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) >= 3


def test_commands_are_obeyed_and_not_sent_to_the_model(
    ragalign: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[str, str]]] = []
    stream = Aligner.stream

    def noted(self: Aligner, messages: Any, **options: Any) -> Any:
        asked.append([(turn.role, turn.content) for turn in messages])
        return stream(self, messages, **options)

    monkeypatch.setattr(Aligner, "stream", noted)
    typed = ["/help", "/show", "/sytem x", "/system Be brief.", "Hello?", "//etc is what?", " /tmp?", "/show", "/reset"]
    typed += ["Bye?", "/system", "Really?", "/exit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed) + "\n"))
    run = ragalign("chat", "--recipe", "zero-shot", "--model", tiny_model, *DECODING)
    assert run.returncode == 0, run.stderr
    assert [[text for role, text in turns if role == "user"] for turns in asked] == [
        ["Hello?"], ["Hello?", "/etc is what?"], ["Hello?", "/etc is what?", "/tmp?"], ["Bye?"], ["Bye?", "Really?"],
    ]  # fmt: skip
    assert [[text for role, text in turns if role == "system"] for turns in asked] == [["Be brief."]] * 4 + [[]]
    for name in ("/help", "/system", "/reset", "/show", "/exit"):
        assert name in run.stdout
    assert "no question asked yet" in run.stderr
    assert "unknown command /sytem: choose one of /help, /system, /reset, /show, /exit" in run.stderr
    # /show printed the prompt of the third question, with the whole conversation.
    assert "/tmp?" in run.stdout


def test_no_index_where_nothing_is_retrieved(
    ragalign: Command, tiny_model: Path, queries: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    arguments = ("generate", "--recipe", "zero-shot", "--model", tiny_model, "--queries", queries, "--out", out)
    run = ragalign(*arguments, "--first", "2", "--system", "Be brief.", "--stop", "zzz", *DECODING, "--quiet")
    assert (run.returncode, run.stderr) == (0, "")
    assert len(out.read_text().splitlines()) == 2
    run = ragalign(
        "chat", "--recipe", "zero-shot", "--question", "hi", "--model", tiny_model, *DECODING, "--json", "--quiet"
    )
    assert json.loads(run.stdout)["prompt"]["demonstrations"] == []
    packed = ragalign("pack", "--recipe", "zero-shot", "--question", "hi", "--tokenizer", tiny_model, "--json")
    assert "hi" in json.loads(packed.stdout)["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chat", "--recipe", "zero-shot", "hi"), "'hi' is not an index: no such folder; the recipe"),
        (("chat", "--recipe", "zero-shot", "hi"), "to ask a question, use --question 'hi'"),
        (("chat", "hi"), "'hi' is not an index: no such folder; build one with `ragalign index"),
        (("chat",), "the recipe 'ica' retrieves demonstrations: give the folder of an index"),
        (("chat", "{index}", "q", "--question", "q"), "give the question once"),
        (("chat", "{index}", "--model", "./nowhere"), "no model folder ./nowhere"),
        (
            ("chat", "{index}", "--gpu-memory", "0.5"),
            "the transformers generator has no option 'gpu_memory_utilization'",
        ),
        (("generate", "--queries", "{queries}", "--out", "{folder}/a"), "the recipe 'ica' retrieves demonstrations"),
        (
            ("generate", "{index}", "--queries", "{queries}", "--out", "{folder}"),
            "is a folder; give the name of a file",
        ),
        (("generate", "{index}", "--queries", "{queries}", "--out", "{queries}/a"), "is not a folder"),
        (("generate", "{index}", "--queries", "{queries}", "--out", "{folder}/a", "--first", "0"), "'--first'"),
        (("bench", "--queries", "{queries}", "--out", "{queries}"), "is a file; give the name of a folder"),
    ],
)
def test_what_can_be_checked_is_checked_at_once(
    ragalign: Command,
    starter_index: Path,
    tiny_model: Path,
    queries: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    places = {"index": starter_index, "queries": queries, "folder": tmp_path}
    given = [one.format(**places) for one in arguments]
    model = () if "--model" in given else ("--model", tiny_model)
    run = ragalign(*given, *model, "--backend", "transformers")
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_what_is_finished_needs_no_engine(
    ragalign: Command, starter_index: Path, tiny_model: Path, queries: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.jsonl"
    arguments = ("generate", starter_index, "--model", tiny_model, "--queries", queries, "--out", out, "--first", "1")
    assert ragalign(*arguments, *DECODING).returncode == 0
    started = time.monotonic()
    again = ragalign(*arguments, *DECODING)
    assert f"nothing to do: all 1 answers are in {out}" in again.stderr
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "9"), "temperature must be a number"),
        (("--max-new-tokens", "0"), "max_tokens must be a whole number"),
        (("--backend", "magic"), "no generator 'magic'"),
        (("--recipe", "magic"), "no recipe 'magic'"),
    ],
)
def test_wrong_options_get_one_line(
    ragalign: Command,
    starter_index: Path,
    tiny_model: Path,
    queries: Path,
    tmp_path: Path,
    arguments: tuple[str, str],
    message: str,
) -> None:
    run = ragalign(
        "generate", starter_index, "--model", tiny_model, "--queries", queries, "--out", tmp_path / "a", *arguments
    )
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stop", "\udcff"), "the stop string '\\udcff' is not valid Unicode"),
        (("--dtype", "floaty"), "no dtype 'floaty'; use one of auto, float16"),
    ],
)
def test_options_are_checked_before_a_model_is_loaded(
    ragalign: Command, tiny_model: Path, queries: Path, tmp_path: Path, arguments: tuple[str, str], words: str
) -> None:
    run = ragalign(
        *("generate", "--recipe", "zero-shot", "--model", tiny_model, "--queries", queries),
        *("--out", tmp_path / "a.jsonl", "--backend", "transformers", *arguments),
    )
    assert (run.returncode, words in run.stderr) == (2, True)
    assert len(run.stderr.splitlines()) == 1


def test_an_empty_question_is_refused(ragalign: Command, tiny_model: Path) -> None:
    run = ragalign("chat", "--recipe", "zero-shot", "--model", tiny_model, "--question", " ")
    assert (run.returncode, run.stderr) == (2, "error: the question is empty\n")


@pytest.mark.filterwarnings("always:recipe .* ignoring")
@pytest.mark.parametrize("recipe", ["zero-shot", "urial", "hybrid", "ica"])
def test_an_endpoint_that_lacks_a_penalty_answers_without_it(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path, recipe: str
) -> None:
    queries, out = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    queries.write_text(json.dumps({"id": "q", "instruction": "Name a colour."}) + "\n")
    with ScriptedServer(lambda _: "Red.") as server:
        common = (
            *(starter_index, "--recipe", recipe, "--model", "m", "--tokenizer", tiny_model, "--context-length", 4096),
            *("--backend", server.base_url, "--max-new-tokens", 7),
        )
        written = ragalign("generate", *common, "--queries", queries, "--out", out)
        said = ragalign("chat", *common, "--question", "Name a colour.")
        talked = ragalign("chat", *common, "--question", "Name a colour.", "--json")
    assert written.returncode == said.returncode == talked.returncode == 0, (written.stderr, said.stderr, talked.stderr)
    assert json.loads(out.read_text().splitlines()[0])["response"] == "Red."
    assert ("ignoring output_repetition_penalty" in written.stderr) == (recipe != "ica")
    assert said.stdout == "Red.\n"
    assert json.loads(talked.stdout)["response"] == "Red."
    assert {received.body["max_tokens"] for received in server.received} == {7}
