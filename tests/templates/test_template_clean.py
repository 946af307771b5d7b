"""From a model's raw output to the answer, whole and streaming."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.texts import texts
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.stopping import cut_at_stop
from ragalign.templates import Template, built_in
from ragalign.templates.streaming import CleanStream
from ragalign.templates.template import Escape

FENCED = Template.load("urial")
RAW_TAILS = {
    "urial": ["\n```\n\n# Query:\n```\nNext?", "\n```", "\n```</s>", "\n```<|endoftext|>\n# Query", "\n```\n\n# User:"],
    "urial-v5": ["\n\n\n# User:\n\nNext?", "\n\n\n", "</s>", "<|endoftext|>junk", "\n# Query:\n```"],
    "ica": ["\n\nQuestion: Next?", "\n\n", "</s>", "<|end_of_text|>", "<|eot_id|>\nQuestion:"],
    "plain": ["\n\nUser: Next?", "\n", "<|im_end|>\n"],
}  # fmt: skip


def upstream_urial(output: str) -> str:
    """What URIAL's and icl-alignment's evaluation code does with an answer that ended at a stop string."""
    return output.rstrip().replace("```", "").replace("<|endoftext|>", " ").strip()


def real_outputs(shared_data: Path) -> list[str]:
    safety = json.loads(
        (shared_data / "just_eval/safety/URIAL=inst_1k-Mistral-7B-v0.1.score_safety.chatgpt.json").read_text()
    )
    lines = (shared_data / "ica/llama2-13B_icl-oasstgpt_outputs_temp0.7.jsonl").read_text(encoding="utf-8").splitlines()
    found = [row["output_cand"] for row in safety]
    found += [text for line in lines for text in json.loads(line)["response_list"]]
    return found


@pytest.mark.parametrize("form", RAW_TAILS)
def test_real_answers_come_out_of_raw_outputs(shared_data: Path, form: str) -> None:
    template = Template.load(form)
    answers = real_outputs(shared_data)
    assert len(answers) == 200 + 1500
    n_with_code = 0
    for answer in answers:
        if any(stop in answer for stop in template.stops) or answer.count("```") % 2:
            continue  # it was made with other stop strings, or ends inside its own code block
        n_with_code += "```" in answer
        # What is neutralised in a prompt comes back from a model that writes as the prompt does.
        for written in (answer, template.escaper.escape(answer)):
            assert template.clean(written) == template.escaper.unescape(answer).strip()
            for tail in RAW_TAILS[form]:
                assert template.clean(written + tail) == template.escaper.unescape(answer).strip()
    assert n_with_code > 10


@pytest.mark.parametrize("form", ["urial", "urial-v5", "urial-v6"])
def test_faithful_cleaning_is_upstream_s(shared_data: Path, form: str) -> None:
    template = replace(Template.load(form), escape="none")
    for answer in real_outputs(shared_data):
        for tail in ("", "\n```\n\n", "\n```", "<|endoftext|>", "\n\n\n", " <|endoftext|> more"):
            if not any(stop in answer + tail for stop in template.stop):
                assert template.clean(answer + tail) == upstream_urial(answer + tail)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("Yes.\n```\n\n# Query:\n```\nAnd?", "Yes."),
        ("Yes.\n```", "Yes."),
        ("  Yes.  \n```  \n\n", "Yes."),
        ("Run:\n```sh\nls\n```\n```\n\n# Query:", "Run:\n```sh\nls\n```"),
        ("Run:\n```sh\nls\n```", "Run:\n```sh\nls\n```"),
        ("Run:\n`\\``sh\nls\n`\\``\n```\n", "Run:\n```sh\nls\n```"),
        ("Write `#\\ Query:` as a heading.\n```", "Write `# Query:` as a heading."),
        ("One.</s>Two.", "One."),
        ("One.<|endoftext|>", "One."),
        ("# Query languages", ""),
        ("", ""),
        ("```", ""),
        (" \n ", ""),
    ],
)
def test_fenced_answers(raw: str, answer: str) -> None:
    assert FENCED.clean(raw) == answer


# A model that was shown fenced answers makes up the next turn under a heading of its own.
MADE_UP_TURNS = ["Question", "Query", "User", "Example 2", "Instruction", "\u95ee\u9898", "**Query**"]
TILDES = Template("tildes", "### Q\n~~~\n", "\n~~~\n### A\n~~~\n", "\n~~~\n\n")
CODE = "Run:\n```sh\nls\n```"


@pytest.mark.parametrize("heading", MADE_UP_TURNS)
@pytest.mark.parametrize("answer", ["It's English.", CODE, f"{CODE}\n\nThen go on.", "Use `x` or ``y``."])
def test_a_fence_and_a_heading_end_an_answer(heading: str, answer: str) -> None:
    rest = f"\n```\n\n# {heading}:\n```\nWhat is it?\n```\n\n# Answer:\n```\nMore.\n```"
    assert FENCED.clean(answer + rest) == answer
    stream = CleanStream(FENCED)
    assert "".join(map(stream.push, answer + rest)) + stream.finish() == answer
    assert stream.ended
    # An engine, which compares strings, stops there too.
    assert FENCED.clean(cut_at_stop(answer + rest, FENCED.stops)) == answer


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("Run:\n```sh\nls\n```\n\n# Heading\n\nMore.\n```\n\n# Query:", "Run:\n```sh\nls\n```\n\n# Heading\n\nMore."),
        ("Run:\n```sh\nls\n```\n\n## Heading\n\nMore.", "Run:\n```sh\nls\n```\n\n## Heading\n\nMore."),
        ("Run:\n```\nls\n```\n\nMore.\n```\n\nLeak", "Run:\n```\nls\n```\n\nMore."),
        ("Run:\n````\n```\nls\n```\n````\n\nMore.", "Run:\n````\n```\nls\n```\n````\n\nMore."),
        ("Run:\n```sh\n# install\nls\n```\nMore.", "Run:\n```sh\n# install\nls\n```\nMore."),
        ("- item:\n  ```sh\n  ls\n  ```\n- next", "- item:\n  ```sh\n  ls\n  ```\n- next"),
        ("```one line``` of code", "```one line``` of code"),
        ("Yes.```\n\n# Question:", "Yes."),
        ("Yes.\n```\nNo, that opens code.\n```", "Yes.\n```\nNo, that opens code.\n```"),
        ("Yes.\n```\n\nNote that I am an AI.", "Yes."),
        ("Yes.\n```\n# Question 1:\nWhat?", "Yes."),
        ("Yes.\n\n```\n# Question:", "Yes."),
        ("Run:\n```\n# install it\npip install x\n```", "Run:\n```\n# install it\npip install x\n```"),
        ("Yes.\n\n# Question:\n```\nWhat?", "Yes."),
        ("Yes.\n\n# Question:\n```", "Yes."),
        ("Yes.\n# Answer:\nNo.", "Yes."),
        ("# Steps:\n\n1. Run:\n```sh\nls\n```", "# Steps:\n\n1. Run:\n```sh\nls\n```"),
        ("# Usage:\n```sh\nls\n```\nDone.", "# Usage:\n```sh\nls\n```\nDone."),
        ("# Usage:\nCall it.\n#### More", "# Usage:\nCall it.\n#### More"),
        ("# Usage:\n``x`` is\n# C:\n`", "# Usage:\n``x`` is\n# C:\n`"),
    ],
)
def test_code_blocks_inside_an_answer_stay(raw: str, answer: str) -> None:
    assert FENCED.clean(raw) == answer


def test_an_open_code_block_gets_its_fence_back_unless_the_answer_was_cut_off() -> None:
    # An engine compares strings, so it takes the fence of a code block that a heading of the same level follows.
    raw = cut_at_stop("Run:\n```sh\nls\n```\n\n# Heading", FENCED.stops)
    assert raw == "Run:\n```sh\nls"
    assert FENCED.clean(raw) == CODE
    assert FENCED.clean(raw, finished=False) == raw


def test_templates_of_users_know_what_closes_their_answers() -> None:
    assert TILDES.stops == ("\n### Q", "\n### A", "\n~~~\n\n### ")
    assert TILDES.clean("Yes.\n~~~\n\n### Question\n~~~") == "Yes."
    assert TILDES.clean("Run:\n~~~sh\nls\n~~~\n\nMore.\n~~~") == "Run:\n~~~sh\nls\n~~~\n\nMore."
    assert Template("labels", "Q:\n```\n", "\n```\nA:\n```\n", "\n```\n\n").stops == ("\nQ:", "\nA:")
    ica = Template.load("ica")
    assert ica.stops == ("\nQuestion:", "\nHere\u2019s an example answer:")
    assert ica.clean("Yes.\n\nHere\u2019s an example answer:\n\nNo.") == "Yes."
    assert replace(ica, escape="none").stops == ("\nQuestion:",)
    own = Template("own", "# Q:\n```\n", "\n```\n\n# A:\n```\n", "\n```\n\n", stop=("END",))
    assert own.stops == ("END", "\n# A:", "\n```\n\n# ")
    # Published settings are repeated as they are.
    assert replace(own, escape="none").stops == ("END",)
    with pytest.raises(ConfigError, match="'closing' is not a fence"):
        Template("bad", "Q:\n", "\nA:\n", "\n\n", fenced=True)


@pytest.mark.parametrize("form", ["urial-v2", "urial-v5", "urial-v6"])
def test_two_blank_lines_and_a_heading_end_an_answer(form: str) -> None:
    template = Template.load(form)
    raw = "It's English.\n\n\n# Question:\n\nWhat?"
    assert template.clean(cut_at_stop(raw, template.stops)) == template.clean(raw) == "It's English."
    assert template.clean("One.\n\n# Two\n\nThree.") == "One.\n\n# Two\n\nThree."


@pytest.mark.parametrize("escape", ["neutralise", "none"])
@pytest.mark.parametrize(
    ("chunks", "answer"),
    [
        (["a\ud83d", "\ude42b"], "a\U0001f642b"),
        (["a\ud83d"], "a\ufffd"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["\ude42a", "\ud83d", "\ud83d", "\ude42"], "\ufffda\ufffd\U0001f642"),
        (["a\ud83d", "", "\ude42</s>"], "a\U0001f642"),
    ],
)
def test_half_characters_wait_for_their_partner(escape: Escape, chunks: list[str], answer: str) -> None:
    template = replace(FENCED, escape=escape)
    assert template.clean("".join(chunks)) == answer
    stream = CleanStream(template)
    assert "".join(map(stream.push, chunks)) + stream.finish() == answer


@pytest.mark.parametrize(
    ("form", "raw", "answer"),
    [
        ("urial", "Cut off\n```\n\n# Qu", "Cut off"),
        ("urial", "Cut off\n#", "Cut off"),
        ("urial", "I like C#", "I like C#"),
        ("urial", "Cut off\n``", "Cut off"),
        ("urial", "Inline ``", "Inline ``"),
        ("urial", "```py\nx = 1\n``", "```py\nx = 1"),
        ("ica", "Cut off\nQuest", "Cut off"),
        ("ica", "Cut off\n\nQuestion", "Cut off"),
        ("ica", "A question", "A question"),
        ("plain", "Cut off\nUser", "Cut off"),
        ("plain", "User", "User"),
    ],
)
def test_answers_cut_off_by_length_lose_the_beginning_of_a_turn(form: str, raw: str, answer: str) -> None:
    assert Template.load(form).clean(raw, finished=False) == answer


QA = Template("qa", "Q:\n", "\n\nA:\n", "\n\n")


@pytest.mark.parametrize(
    ("raw", "answer"),
    [("Q:\nNext?", ""), ("\nQ:\nNext?", ""), ("An FAQ: yes.\nQ:", "An FAQ: yes."), ("FAQ: yes", "FAQ: yes")],
)
def test_answers_that_begin_with_the_next_turn_are_empty(raw: str, answer: str) -> None:
    assert QA.clean(raw) == answer
    assert Template.load("plain").clean("User: that is what I call him.") == "User: that is what I call him."


STREAMED = [QA, *map(Template.load, built_in()), *(replace(Template.load(name), escape="none") for name in built_in())]
PARTS = (
    "#\\ Query:", "`\\``", "\\", "# Que", "# Query", "\nQuestion:", "Question\\:", "\nUser:", "```", "</s>", "<|im",
    " ", "<|endoftext|>", "\n", "word", "\n\\Question\\:", "Q:\n", "<\\/s>", "$\\frac{1}{2}$",
)  # fmt: skip
outputs = st.lists(st.one_of(texts, st.sampled_from(PARTS)), max_size=8).map("".join)


@given(template=st.sampled_from(STREAMED), raw=outputs, finished=st.booleans(), data=st.data())
@settings(max_examples=1500, deadline=None)
def test_streamed_pieces_add_up(template: Template, raw: str, finished: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    stream = CleanStream(template)
    given = [stream.push(raw[start:end]) for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole = template.clean(raw, finished=finished)
    assert whole.startswith("".join(given))
    assert "".join(given) + stream.finish(finished=finished) == whole


@given(template=st.sampled_from(STREAMED), raw=outputs)
@settings(max_examples=400, deadline=None)
def test_streamed_characters_add_up(template: Template, raw: str) -> None:
    stream = CleanStream(template)
    assert "".join(map(stream.push, raw)) + stream.finish() == template.clean(raw)


@pytest.mark.parametrize("form", ["urial", "ica"])
def test_streams_do_not_lag_behind(form: str) -> None:
    stream = CleanStream(Template.load(form))
    raw = "A plain answer with words, and some more words.\nA second line: it goes on. " * 20
    longest = 0
    given = 0
    for number, char in enumerate(raw, start=1):
        given += len(stream.push(char))
        longest = max(longest, number - given)
    assert longest <= 3


def test_long_streams_take_linear_time() -> None:
    def seconds(n_chunks: int) -> float:
        stream = CleanStream(FENCED)
        start = time.process_time()
        for _ in range(n_chunks):
            stream.push(" token")
        stream.finish()
        return time.process_time() - start

    small = min(seconds(1000) for _ in range(3))
    assert min(seconds(8000) for _ in range(2)) < 8 * 4 * small + 0.1
