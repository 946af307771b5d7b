from __future__ import annotations

import pytest

from ragalign.serving.bodies import parse_object
from ragalign.serving.errors import ApiError


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
