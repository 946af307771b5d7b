from __future__ import annotations

from typing import Any

import pytest

from ragalign.serving import Limits
from ragalign.serving.bodies import parse_object
from ragalign.serving.body_models import parse
from ragalign.serving.errors import ApiError
from ragalign.serving.requests import CompletionRequest


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1' + b"0" * 5000 + b"}", "the body contains a number with too many digits"),
        (b'{"a": NaN}', "the body is not JSON: NaN is not a JSON number"),
        (b'{"a": "\xff"}', "the body is not UTF-8: byte 8 is wrong"),
        (b"{", "the body is not JSON: Expecting property name"),
        (b'{"a":' * 100_000, "the body is nested too deeply"),
    ],
    ids=["digits", "nan", "bytes", "cut", "deep"],
)
def test_what_is_no_object(body: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words) as raised:
        parse_object(body)
    assert raised.value.status == 400


def test_a_byte_order_mark_makes_no_difference() -> None:
    assert parse_object(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        ([1.5], "prompt[0]", "a valid integer"),
        ([True], "prompt[0]", "a valid integer"),
        ([1, 1.5], "prompt[1]", "a valid integer"),
        ([1, 2, True], "prompt[2]", "a valid integer"),
        ([1, "a"], "prompt[1]", "a valid integer"),
        (["a", 5], "prompt[1]", "a valid string"),
        ([[1], 2], "prompt[1]", "a valid list"),
        ([[1], [2, True]], "prompt[1][1]", "a valid integer"),
        ({"a": 1}, "prompt", "a valid string or a valid list"),
    ],
    ids=str,
)
def test_the_first_invalid_item_of_a_prompt_is_named(prompt: Any, param: str, words: str) -> None:
    with pytest.raises(ApiError) as raised:
        parse(CompletionRequest, {"model": "m", "prompt": prompt}, Limits())
    assert (raised.value.status, raised.value.param) == (400, param)
    assert words in raised.value.message
