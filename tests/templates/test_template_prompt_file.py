"""Prompt files: published ones and any others of their families, to the byte."""

from __future__ import annotations

import json
import random
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.templates import PromptFile, Template
from ragalign.types import Demonstration, Turn

URIAL_COUNTS = {
    "inst_1k.txt": 3, "inst_1k_v4.txt": 3, "inst_1k_v4.help.txt": 3, "inst_1shot.txt": 1, "inst_2k.txt": 8,
    "inst_help_v5-1k.txt": 3, "inst_help_v6-1k.txt": 3, "inst_only.txt": 0,
}  # fmt: skip
# Demonstrations and, of them, those without an answer.
ALIGNMENT_COUNTS = {
    "urial.txt": (3, 0),
    "urial.plus.best_4&5&6.examples.txt": (6, 0),
    "greedy/urial.greedy.5.examples.txt": (5, 0),
    "greedy/urial.greedy.10.examples.txt": (10, 0),
    "greedy/urial.greedy.50.examples.txt": (50, 0),
    "random/urial.random.10.examples.txt": (10, 0),
    "diversity/openhermes-10.examples.txt": (10, 0),
    "diversity/openhermes-50.examples.txt": (50, 0),
    "qa_matching/urial.correct.txt": (3, 0),
    "qa_matching/urial.circular_shift.txt": (3, 0),
    "qa_matching/urial.id.random_answer.txt": (3, 0),
    "qa_matching/urial.ood.random_answer.txt": (3, 0),
    "qa_matching/urial.no_answer.txt": (3, 3),
    "unsupervised/urial.unsupervised.3.examples.txt": (6, 3),
    "unsupervised/urial.unsupervised.10.examples.txt": (13, 10),
}


def as_turns(texts: list[str]) -> list[Turn]:
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def faithful(path: Path, form: str = "auto") -> PromptFile:
    file = PromptFile.load(path, form)
    return replace(file, template=replace(file.template, escape="none"))


def test_urial_goldens(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "urial"
    rows = [json.loads(line) for line in (folder / "rendered.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 56
    assert {row["prompt_file"] for row in rows} == URIAL_COUNTS.keys()
    for row in rows:
        path = folder / "prompts" / row["prompt_file"]
        renamed = tmp_path / "p.md"
        renamed.write_bytes(path.read_bytes())
        for file in (faithful(path), faithful(renamed)):
            assert file.render(as_turns(row["turns"])) == row["rendered"]
            # Through template and constants, as a packer puts them together.
            constants = "".join(constant.text for constant in file.prompt_constants())
            template = file.prompt_template()
            rendered = template.render_preamble() + constants + template.render_turns(as_turns(row["turns"]))
            assert rendered == row["rendered"]


@pytest.mark.parametrize("name", URIAL_COUNTS)
def test_urial_files_come_back(shared_data: Path, name: str) -> None:
    path = shared_data / "urial" / "prompts" / name
    file = PromptFile.load(path)
    assert file.text.encode() == path.read_bytes()
    assert len(file.constants) == URIAL_COUNTS[name]
    for constant in file.constants:
        one = constant.demonstration
        assert one.instruction.strip()
        assert one.response.strip()
        for text in (one.instruction, one.response):
            assert "```" not in text
            assert "# " not in text
        assert one.instruction in constant.text
        assert one.response in constant.text


def test_one_demonstration_of_each_urial_family(shared_data: Path) -> None:
    folder = shared_data / "urial" / "prompts"
    question = "Can you tell me some common types of renewable energy sources?"
    for name in ("inst_1shot.txt", "inst_1k_v4.txt", "inst_help_v5-1k.txt", "inst_help_v6-1k.txt"):
        first = PromptFile.load(folder / name).constants[0].demonstration
        assert first.instruction == question
        assert first.response.startswith("Hello! ")
        assert first.response.endswith(("any other questions!", "climate change."))
    assert PromptFile.load(folder / "inst_help_v5-1k.txt").template.name == "urial-v5"
    assert PromptFile.load(folder / "inst_help_v6-1k.txt").template.name == "urial-v6"


@pytest.mark.parametrize("name", ALIGNMENT_COUNTS)
def test_alignment_files_come_back(shared_data: Path, name: str) -> None:
    path = shared_data / "icl_alignment" / name
    file = PromptFile.load(path)
    assert file.text.encode() == path.read_bytes()
    n_all, n_without = ALIGNMENT_COUNTS[name]
    assert len(file.constants) == n_all
    assert sum(not constant.demonstration.response for constant in file.constants) == n_without
    assert all(constant.demonstration.instruction.strip() for constant in file.constants)
    assert file.template.name == "urial"


def test_all_alignment_files_are_tried(shared_data: Path) -> None:
    folder = shared_data / "icl_alignment"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")} == ALIGNMENT_COUNTS.keys()


def test_mismatched_answers_are_where_the_file_has_them(shared_data: Path) -> None:
    folder = shared_data / "icl_alignment" / "qa_matching"
    right = [one.demonstration for one in PromptFile.load(folder / "urial.correct.txt").constants]
    shifted = [one.demonstration for one in PromptFile.load(folder / "urial.circular_shift.txt").constants]
    assert [one.instruction for one in shifted] == [one.instruction for one in right]
    responses = [one.response for one in right]
    assert [one.response for one in shifted] == [*responses[1:], responses[0]]


def test_code_fences_inside_answers_belong_to_them(shared_data: Path) -> None:
    file = PromptFile.load(shared_data / "icl_alignment" / "diversity" / "openhermes-10.examples.txt")
    response = file.constants[0].demonstration.response
    assert response.count("```") == 2
    assert "```java\nint[] numbers" in response


@pytest.mark.parametrize("folder", ["urial/prompts", "icl_alignment"])
def test_carriage_returns_stay(shared_data: Path, tmp_path: Path, folder: str) -> None:
    for path in sorted((shared_data / folder).rglob("*.txt")):
        windows = tmp_path / "windows.txt"
        windows.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        there, here = PromptFile.load(path), PromptFile.load(windows)
        assert here.text.encode() == windows.read_bytes()
        assert here.template == there.template
        assert [
            (one.demonstration.instruction.replace("\r\n", "\n"), one.demonstration.response.replace("\r\n", "\n"))
            for one in here.constants
        ] == [(one.demonstration.instruction, one.demonstration.response) for one in there.constants]


# Files of the families with texts of other people.

_line = st.text(string.ascii_letters + string.digits + " .,;:!?'#>*-_()[]{}<>\\/\u00e9\u4f60\U0001f642", max_size=40)
_plain = st.lists(_line, min_size=1, max_size=5).map("\n".join).filter(str.strip)
_code = st.tuples(_plain, _plain).map(lambda two: f"{two[0]}\n```python\n{two[1]}\n```")
_answers = st.one_of(_plain, _plain, _code, st.tuples(_code, _plain).map("\n".join))
_pairs = st.lists(st.tuples(_plain, _answers), min_size=1, max_size=6)
# Forms without fences do not keep white space around a text.
_stripped_pairs = st.lists(st.tuples(_plain.map(str.strip), _answers.map(str.strip)), min_size=1, max_size=6)
_gaps = st.integers(2, 4).map(lambda n: "\n" * n)


def _allowed(text: str) -> bool:
    headings = ("# Query:", "# Answer:", "# User:", "# Assistant:", "Question:", "User:", "Assistant:")
    return not any(line.strip().startswith(headings) for line in text.splitlines())


@given(pairs=_pairs, gap=_gaps, hugging=st.booleans(), end=st.sampled_from(["", "\n", " \n", "\n\n"]), data=st.data())
@settings(max_examples=200, deadline=None)
def test_fenced_files_of_other_texts(
    pairs: list[tuple[str, str]], gap: str, hugging: bool, end: str, data: st.DataObject
) -> None:
    assume(all(_allowed(text) for pair in pairs for text in pair))
    space = data.draw(st.sampled_from(["", " ", "  "]))
    answered = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    parts = []
    if hugging:
        # A blank line right behind a fence is the fence's own.
        pairs = [(instruction.lstrip().rstrip("\n"), response) for instruction, response in pairs]
    for (instruction, response), whole in zip(pairs, answered, strict=True):
        parts.append(f"# Query:\n```{instruction}```" if hugging else f"# Query:\n```\n{instruction}\n```")
        if whole:
            parts.append(f"# Answer:{space}\n```{space}\n{response}\n```{space}")
    text = "# Instruction\n\nSome words.\n\n" + gap.join(parts) + end
    file = PromptFile.parse(text)
    assert file.text == text
    assert file.template.name == "urial"
    assert [(one.demonstration.instruction, one.demonstration.response) for one in file.constants] == [
        (instruction, response if whole else "") for (instruction, response), whole in zip(pairs, answered, strict=True)
    ]


@given(
    pairs=_stripped_pairs,
    form=st.sampled_from(["urial-v2", "urial-v5", "urial-v6"]),
    end=st.sampled_from(["", "\n", "\n\n\n"]),
)
@settings(max_examples=200, deadline=None)
def test_headed_files_of_other_texts(pairs: list[tuple[str, str]], form: str, end: str) -> None:
    assume(all(_allowed(text) for pair in pairs for text in pair))
    template = replace(Template.load(form), escape="none")
    text = "Some words.\n\n\n" + "".join(
        template.opening + instruction + template.middle + response + template.closing
        for instruction, response in pairs
    )
    text = text.rstrip("\n") + end
    file = PromptFile.parse(text)
    assert file.text == text
    assert file.template.name == form
    assert [(one.demonstration.instruction, one.demonstration.response) for one in file.constants] == pairs


@given(pairs=_stripped_pairs, form=st.sampled_from(["ica", "plain"]))
@settings(max_examples=100, deadline=None)
def test_labelled_files_of_other_texts(pairs: list[tuple[str, str]], form: str) -> None:
    assume(all(_allowed(text) and "xample answer:" not in text for pair in pairs for text in pair))
    template = replace(Template.load(form), escape="none")
    text = "".join(
        template.opening + instruction + template.middle + response + template.closing
        for instruction, response in pairs
    )
    file = PromptFile.parse(text)
    assert file.text == text
    assert file.template.name == form
    assert [(one.demonstration.instruction, one.demonstration.response) for one in file.constants] == pairs
    # What a conversation after it looks like is what the template alone would give.
    turns = [Turn("user", "Hi?")]
    assert replace(file, template=template).render(turns) == text + template.render_turns(turns)


FENCED = "Be kind.\n\n# Query:{0}```\nOne?\n```\n\n# Answer:{0}```\nTwo.\n```\n\n# Query:{0}```\nThree?\n```\n"
HEADED = "Be kind.\n\n# {0}:{2}One?\n\n# {1}:{2}Two.\n{3}\n# {0}:{2}Three?\n{3}"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (FENCED.format("\n\n"), "urial"),
        (FENCED.format(" \n \n\n"), "urial"),
        (FENCED.format("\n").replace("```", "````"), "urial"),
        (HEADED.format("Query", "Answer", "\n  \n", " \n"), "urial-v2"),
        (HEADED.format("Query", "Answer", "\n", " \n \n"), "urial-v2"),
        (HEADED.format("User", "Assistant", " \n \n", "\t\n"), "urial-v5"),
        (HEADED.format("User", "Assistant", "\n", " \n\n"), "urial-v6"),
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_blank_lines_around_a_text_are_not_of_it(text: str, form: str, line_break: str) -> None:
    text = text.replace("\n", line_break)
    file = PromptFile.parse(text)
    assert file.text == text
    assert file.template.name == form
    assert [(one.demonstration.instruction, one.demonstration.response) for one in file.constants] == [
        ("One?", "Two."),
        ("Three?", ""),
    ]


OWN_FORMS = {
    "inline": 'opening = "Q: "\nmiddle = " A: "\nclosing = "\\n"\n',
    "tags": 'opening = "<user>"\nmiddle = "</user><bot>"\nclosing = "</bot>"\n',
    "ruled": 'opening = "# Q\\n---\\n"\nmiddle = "\\n---\\n# A\\n---\\n"\nclosing = "\\n---\\n\\n"\n',
    "fenced": 'opening = "# Q\\n```\\n"\nmiddle = "\\n```\\n# A\\n```\\n"\nclosing = "\\n```\\n"\nfenced = true\n',
}


@pytest.mark.parametrize("name", OWN_FORMS)
def test_files_in_the_form_of_a_template_of_one_s_own(tmp_path: Path, name: str) -> None:
    form = tmp_path / f"{name}.toml"
    form.write_text(OWN_FORMS[name], encoding="utf-8")
    pairs = [("One?", "Two."), ("Lines\n\nof text", "code\n    indented\nend"), ("Bare?", "")]
    template = Template.load(form)
    text = "Be kind.\n\n" + "".join(template.render_demonstration(Demonstration(*pair)) for pair in pairs)
    file = PromptFile.parse(text, str(form))
    assert file.text == text
    assert file.preamble == "Be kind.\n\n"
    assert [(one.demonstration.instruction, one.demonstration.response) for one in file.constants] == pairs
    assert file.render([Turn("user", "Hi?")]) == text + template.render_turns([Turn("user", "Hi?")])


def test_a_form_of_nothing_but_fences_is_refused(tmp_path: Path) -> None:
    form = tmp_path / "bare.toml"
    strings = 'opening = "```\\n"\nmiddle = "\\n```\\n```\\n"\nclosing = "\\n```\\n"\n'
    form.write_text(f'{strings}fenced = true\nescape = "none"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="template 'bare': it has no headings, which"):
        PromptFile.parse("```\nOne?\n```\n", str(form))


def test_a_large_file_is_parsed_in_linear_time() -> None:
    chosen = random.Random(0)
    words = [" ".join(chosen.choices(["alpha", "beta", "```x```", "# no"], k=80)) for _ in range(4000)]
    text = "".join(
        f"# Query:\n```\n{words[n]}\n```\n\n# Answer:\n```\n{words[n + 1]}\n```\n\n" for n in range(0, 4000, 2)
    )
    assert len(PromptFile.parse(text).constants) == 2000


def test_the_form_can_be_chosen_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "bare.txt"
    path.write_text('Answers stand under "# User:".\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bare.txt: no demonstrations to detect the form by; choose urial-v5"):
        PromptFile.load(path)
    file = PromptFile.load(path, "urial-v6")
    assert file.render([Turn("user", "Hi")]) == ('Answers stand under "# User:".\n\n\n# User:\nHi\n\n\n# Assistant:\n')
    path.write_text("Nothing here tells.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot detect the form of this prompt file; choose one"):
        PromptFile.load(path)
    with pytest.raises(ConfigError, match="no template 'urial-v9': use one of ica, plain, urial"):
        PromptFile.load(path, "urial-v9")
    own = tmp_path / "own.toml"
    own.write_text('opening = "### Q:\\n"\nmiddle = "\\n### A:\\n"\nclosing = "\\n\\n"\n', encoding="utf-8")
    path.write_text("Be brief.\n\n### Q:\nOne?\n### A:\nTwo.\n", encoding="utf-8")
    file = PromptFile.load(path, str(own))
    assert [(c.demonstration.instruction, c.demonstration.response) for c in file.constants] == [("One?", "Two.")]
    assert file.render([Turn("user", "Hi")]) == "Be brief.\n\n### Q:\nOne?\n### A:\nTwo.\n\n### Q:\nHi\n### A:\n"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.txt: cannot read the prompt file"):
        PromptFile.load(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"# Query:\n```\ncaf\xe9\n```\n")
    with pytest.raises(DataError, match=r"latin.txt: cannot read the prompt file: .*position 16"):
        PromptFile.load(tmp_path / "latin.txt")
