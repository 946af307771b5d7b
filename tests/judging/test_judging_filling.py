from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.judging.protocols.filling import check_placeholders, fill

MARKED = {"format": "{%s}", "braces": "{%s}", "dollar": "${%s}", "urial": "{$%s}"}


@pytest.mark.parametrize(("syntax", "marked"), MARKED.items())
@given(question=st.text(), answer=st.text())
def test_inserted_text_is_not_looked_at_again(syntax: str, marked: str, question: str, answer: str) -> None:
    template = f"Q {marked % 'question'}|A {marked % 'answer'}|again {marked % 'question'}"
    filled = fill(template, {"question": question, "answer": answer}, syntax)  # type: ignore[arg-type]
    assert filled == f"Q {question}|A {answer}|again {question}"


@pytest.mark.parametrize(("syntax", "marked"), MARKED.items())
def test_an_answer_with_a_placeholder_stays_as_it_is(syntax: str, marked: str) -> None:
    values = {"output_1": f"see {marked % 'output_2'}", "output_2": "SECRET"}
    assert fill(marked % "output_1", values, syntax) == f"see {marked % 'output_2'}"  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(), min_size=2))
def test_format_agrees_with_str_format(values: dict[str, str]) -> None:
    template = "{{literal}} {a} and {b}, {a}"
    assert fill(template, values, "format") == template.format(**values)


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(), min_size=2))
def test_dollar_agrees_with_string_template(values: dict[str, str]) -> None:
    template = "$$5 ${a} and $b, ${a}"
    assert fill(template, values, "dollar") == string.Template(template).substitute(values)


def test_braces_leave_other_braces_alone() -> None:
    assert fill('{\n "x": """{a}"""\n}, {unknown} {{a}}', {"a": "1"}, "braces") == '{\n "x": """1"""\n}, {unknown} {1}'


def test_a_missing_placeholder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"a prompt lacks the placeholder output_2"):
        check_placeholders("{output_1}", ["output_1", "output_2"], [], "braces", "a prompt")


def test_an_unknown_placeholder_is_named_where_every_one_counts() -> None:
    with pytest.raises(ConfigError, match="unknown placeholder reply"):
        check_placeholders("{answer} {reply}", ["answer"], [], "format", "a prompt")
    check_placeholders("{answer} {reply}", ["answer"], [], "braces", "a prompt")
