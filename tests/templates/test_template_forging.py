"""No text can imitate a template: what went into a prompt is what comes out of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.neutral import check_neutral
from fixtures.texts import conversations, demonstrations, texts
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.templates import Template, built_in
from ragalign.types import Demonstration, Turn

ATTACKS = [json.loads(line) for line in (Path(__file__).parent / "attacks.jsonl").read_text().splitlines()]

CUSTOM = {
    "alpaca.toml": 'opening = "### Instruction:\\n"\nmiddle = "\\n\\n### Response:\\n"\nclosing = "\\n\\n"\n',
    "chat.toml": 'opening = "Human: "\nmiddle = "\\n\\nAssistant: "\nclosing = "\\n\\n"\ncue = "\\n\\nAssistant:"\n',
    "inline.toml": 'opening = "Q: "\nmiddle = " A: "\nclosing = "\\n"\n',
    "quotes.toml": 'opening = "> "\nmiddle = "\\n< "\nclosing = "\\n"\n',
    "tags.toml": 'opening = "<user>"\nmiddle = "</user><bot>"\nclosing = "</bot>"\n',
    "rules.toml": 'opening = "---\\n"\nmiddle = "\\n===\\n"\nclosing = "\\n\\n"\n',
    "words.toml": 'opening = "Question\\n"\nmiddle = "\\nAnswer\\n"\nclosing = "\\n\\n"\n',
    "hangul.toml": 'opening = "\\uc9c8\\ubb38: "\nmiddle = "\\n\\ub2f5: "\nclosing = "\\n"\n',
    "forced.toml": 'opening = "Q:\\n"\nmiddle = "\\n\\nA:\\n"\nclosing = "\\n\\n"\ncue = "\\n\\nA:\\nSure, "\n',
    "tilde.toml": 'opening = "~~\\n"\nmiddle = "\\n~~\\n~~\\n"\nclosing = "\\n~~\\n\\n"\n',
}


@pytest.fixture(scope="module", params=[*built_in(), *CUSTOM])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Template:
    if request.param not in CUSTOM:
        return Template.load(request.param)
    path = tmp_path_factory.mktemp("templates") / request.param
    path.write_text(CUSTOM[request.param], encoding="utf-8")
    return Template.load(path)


# A strict reader, which shares no code with the escaper.


def check_turns_come_back(template: Template, turns: list[Turn]) -> None:
    assert template.parse(template.render_turns(turns)) == [turn for turn in turns if turn.role != "system"]


def check_demonstration_comes_back(template: Template, shown: Demonstration) -> None:
    turns = [Turn("user", shown.instruction)]
    if shown.response:
        turns.append(Turn("assistant", shown.response))
    assert template.parse(template.render_demonstration(shown)) == turns


@given(text=texts)
@settings(max_examples=400, deadline=None)
@example(text="#\u200b Query")
@example(text="# \uff31\uff35\uff25\uff32\uff39\uff1a")
@example(text="`\u0301`\u200b`")
@example(text="\u2028Question\n:")
@example(text="\x1cuser\t:")
def test_neutralised_texts_hold_no_delimiter(template: Template, text: str) -> None:
    check_neutral(template, text)


@given(turns=conversations(max_pairs=3))
@settings(max_examples=300, deadline=None)
def test_conversations_come_back(template: Template, turns: list[Turn]) -> None:
    check_turns_come_back(template, turns)


@given(shown=demonstrations, turns=conversations())
@settings(max_examples=300, deadline=None)
def test_demonstrations_come_back(template: Template, shown: Demonstration, turns: list[Turn]) -> None:
    check_demonstration_comes_back(template, shown)
    # Before a conversation they are turns like all others; a system text becomes no turn at all.
    joined = template.render_demonstration(shown) + template.render_turns(turns)
    expected = template.parse(template.render_demonstration(shown)) + [turn for turn in turns if turn.role != "system"]
    assert template.parse(joined) == expected


@given(system=texts)
@settings(max_examples=200, deadline=None)
def test_system_texts_open_no_turn(template: Template, system: str) -> None:
    preamble = replace(template, preamble="Be kind.\n\n").render_preamble(system)
    on_its_own_line = template.closing.endswith("\n")
    assert ("\n" if on_its_own_line else "") + template.opening not in preamble
    assert template.middle not in preamble


def own_pieces(template: Template) -> st.SearchStrategy[str]:
    """Texts made of parts of the template's own strings."""
    strings = [template.opening, template.middle, template.closing, template.cue]
    cut = st.sampled_from(strings + [left + right for left in strings for right in strings]).flatmap(
        lambda string: st.tuples(st.integers(0, len(string)), st.integers(0, len(string))).map(
            lambda ends: string[min(ends) : max(ends)]
        )
    )
    return st.lists(st.one_of(cut, st.sampled_from(["", "x", "\\", "\n", " ", "#", "`", "\u200b"])), max_size=5).map(
        "".join
    )


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_parts_of_the_template_itself_come_back(template: Template, data: st.DataObject) -> None:
    pieces = own_pieces(template)
    roles = ["user", "assistant"] * data.draw(st.integers(0, 2)) + ["user"]
    turns = [Turn(role, data.draw(pieces)) for role in roles]  # type: ignore[arg-type]
    check_turns_come_back(template, turns)
    check_demonstration_comes_back(template, Demonstration(data.draw(pieces), data.draw(pieces)))
    for turn in turns:
        check_neutral(template, turn.content)


BRICKS = (
    "\n", "\n", "\n\n", " ", "Q:", "A:", "Q", "User says", "# Q", "## A:", "#", "##", ">", "`", "``", "```", "-", "--",
    "<u>", "</u>", "ab", "aba", "abab", "a", "\uc9c8\ubb38:", "\uc9c8", "\u2026", "\ufb01nd", "\uff21:", "\u0130x",
    "e\u0301:", "\u200b:", "::", "1.", "\r\n", "\u2028", "\u00df\u00df",
)  # fmt: skip
bricks = st.lists(st.sampled_from(BRICKS), min_size=1, max_size=4).map("".join)


@given(opening=bricks, middle=bricks, closing=bricks, cue=st.one_of(st.just(""), bricks), data=st.data())
@settings(max_examples=800, deadline=None)
def test_any_template_that_is_accepted_gives_everything_back(
    opening: str, middle: str, closing: str, cue: str, data: st.DataObject
) -> None:
    try:
        template = Template("any", opening, middle, closing, cue=cue)
    except ConfigError:
        assume(False)
    pieces = own_pieces(template)
    turns = [Turn(role, data.draw(pieces)) for role in ("user", "assistant", "user")]  # type: ignore[arg-type]
    check_turns_come_back(template, turns)
    check_turns_come_back(template, turns[:1])


def test_the_corpus_is_large_and_varied() -> None:
    assert len({attack["text"] for attack in ATTACKS}) == len(ATTACKS) >= 200
    assert len({attack["kind"] for attack in ATTACKS}) >= 10


@pytest.mark.parametrize("kind", sorted({attack["kind"] for attack in ATTACKS}))
def test_attacks_change_no_turn(template: Template, kind: str) -> None:
    for text in (attack["text"] for attack in ATTACKS if attack["kind"] == kind):
        check_neutral(template, text)
        check_turns_come_back(template, [Turn("user", text)])
        check_turns_come_back(template, [Turn("user", text), Turn("assistant", text), Turn("user", text)])
        check_turns_come_back(template, [Turn("system", text), Turn("user", f"Look: {text}")])
        check_turns_come_back(template, [Turn("user", f"\n{text}"), Turn("assistant", f"{text}\n"), Turn("user", "?")])
        check_demonstration_comes_back(template, Demonstration(text, text))


def test_every_attack_is_noticed_by_the_template_it_is_made_for() -> None:
    for attack in ATTACKS:
        template = Template.load(attack["template"])
        assert template.escaper.escape(attack["text"]) != attack["text"], attack


HARMLESS = (
    "", "Plain words, nothing else.", "C# and F# are languages; #hashtag, #user, $('#answer')", "# Title\n\n## Part",
    "a ` b `` c", "My question: why?", "The user: a person", "x < y > z, a <b> c", "[1] [INSTALL]", "path\\to\\file",
    "\\frac{1}{2} \\# \\`", "Questions:\n1. Why?", "# Queen\n# Useful", "\u4f60\u597d\uff01 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f642", "tables | a | b |", "<|", "|>", "<s", "[INST", "<|not a token|>",
    "\u0395\u03c1\u03ce\u03c4\u03b7\u03c3\u03b7: \u03c4\u03b9 \u03ce\u03c1\u03b1 \u03b5\u03af\u03bd\u03b1\u03b9;\n"
    "# \u0391\u03c0\u03ac\u03bd\u03c4\u03b7\u03c3\u03b7:",
    "\u0412\u043e\u043f\u0440\u043e\u0441: \u043a\u0442\u043e \u0442\u0430\u043c?\n"
    "# \u041e\u0442\u0432\u0435\u0442: \u042e\u0437\u0435\u0440:",
    "\u0540\u0561\u0580\u0581\u0589 \u0548\u055e\u057e\n# \u0548\u057d\u0578\u0582\u0574:",
    "\u0421\u0421\u0421\u0420: <\u0442\u0435\u0433> [\u0418\u041d\u0421\u0422]",
    "\U0001f1fa\U0001f1f8: \U0001f1eb\U0001f1f7 \u24b6\u24b7 \u2460: \u1d00\u1d07",
    "\u00e0 la carte: \u00b5 \u2260 \u03bc",
)  # fmt: skip


@pytest.mark.parametrize("name", ["urial", "urial-v5", "urial-v6", "ica"])
@pytest.mark.parametrize("text", HARMLESS)
def test_texts_without_delimiters_stay_as_they_are(name: str, text: str) -> None:
    escaper = Template.load(name).escaper
    assert escaper.escape(text) is text
    assert escaper.unescape(text) == text


LONE = "half an emoji: \ud83d"


@pytest.mark.parametrize(
    "render",
    [
        lambda template: template.render_turns([Turn("user", LONE)]),
        lambda template: template.render_turns([Turn("user", "a"), Turn("assistant", LONE), Turn("user", "b")]),
        lambda template: template.render([Turn("system", LONE), Turn("user", "a")]),
        lambda template: template.render_demonstration(Demonstration(LONE, "b")),
        lambda template: template.render_demonstration(Demonstration("a", LONE)),
    ],
    ids=["query", "history", "system", "instruction", "response"],
)
def test_lone_surrogates_are_refused_in_one_line(template: Template, render: Callable[[Template], str]) -> None:
    with pytest.raises(DataError, match=r"is not valid Unicode: character 16 is a lone surrogate \(U\+D83D\)"):
        render(template)


UNITS = (
    "#", "`", "\n", " ", "<", "[", "\\", ":", "\u200b", "\u00e9", "# ", "#\n", "\n ", "<|", "question\n", "`\u200b",
    "```\n", "# query", "here\u2019s ", "\n\n\n# ", "<|a", "\u0301",
)  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
@pytest.mark.parametrize("name", ["urial", "ica"])
def test_time_grows_with_length_only(name: str, unit: str) -> None:
    template = Template.load(name)

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        start = time.process_time()
        assert template.escaper.unescape(template.escaper.escape(text)) == text
        return time.process_time() - start

    small, large = min(seconds(50_000) for _ in range(3)), min(seconds(800_000) for _ in range(2))
    assert large < 4 * 16 * small + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["#", "`", "\n", " ", "<"])
def test_five_megabytes_of_one_character(unit: str) -> None:
    template = Template.load("urial")
    turns = [Turn("user", unit * 5_000_000)]
    assert template.parse(template.render_turns(turns)) == turns
