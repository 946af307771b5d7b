from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.cache import Cache
from ragalign.errors import DataError, JudgeError
from ragalign.judging.cache import ReplyCache, reply_key
from ragalign.judging.pricing import Price, PriceTable, Quote, guess_usage
from ragalign.judging.requests import Answer, Item, JudgeParameters, JudgeReply, JudgeRequest, JudgeUsage
from ragalign.types import Turn

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
usages = st.none() | st.builds(JudgeUsage, st.integers(0, 10**9), st.integers(0, 10**9))


@given(st.dictionaries(st.text(), json_values, max_size=4), usages, st.none() | st.floats(0, 1e10))
def test_replies_come_back_as_they_were(
    choice: dict[str, Any], usage: JudgeUsage | None, seconds: float | None
) -> None:
    reply = JudgeReply("judge", choice, usage, seconds, seconds)
    with ReplyCache(None) as cache:
        cache.put("k", reply)
        cache.put("k", JudgeReply("judge", {}))
        assert cache.get("k") == [reply, JudgeReply("judge", {})]
        assert cache.get("other") == []
        assert len(cache) == 2


def test_replies_are_kept_in_order(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "replies.sqlite"
    texts = [f"reply {number}" for number in range(20)]
    for text in texts:
        with ReplyCache(path) as cache:
            cache.put("k", JudgeReply.from_text(text, "j"))
    with ReplyCache(path) as cache:
        assert [reply.text for reply in cache.get("k")] == texts


GOOD = json.dumps({"judge": "j", "choice": {}, "usage": None, "latency_s": None, "created": None})


@pytest.mark.parametrize(
    "value",
    [b"{bad", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, GOOD.replace("{}", "null").encode(),
     GOOD.replace('"usage": null', '"usage": {"n_prompt_tokens": "x", "n_output_tokens": 1}').encode(),
     GOOD.replace('"usage": null', '"usage": {"n_prompt_tokens": null, "n_output_tokens": 1}').encode(),
     GOOD.replace('"latency_s": null', '"latency_s": "x"').encode(),
     GOOD.replace('"created": null', '"created": NaN').encode(),
     GOOD.replace('"usage": null', '"usage": 3').encode(), GOOD.replace('"j"', "7").encode()],
)  # fmt: skip
@pytest.mark.parametrize("has_checksum", [True, False])
def test_a_damaged_reply_is_reported_and_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: bytes, has_checksum: bool
) -> None:
    path = tmp_path / "replies.sqlite"
    with ReplyCache(path) as cache:
        cache.put("k", JudgeReply.from_text("first", "j"))
        cache.put("k", JudgeReply.from_text("second", "j"))
    if has_checksum:
        Cache(path, "test").put({b"k/0": value})
    else:
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE ragalign_cache SET value = ? WHERE key = ?", (value, b"k/0"))
        connection.close()
    with ReplyCache(path) as cache:
        for _ in range(2):
            assert [reply.text for reply in cache.get("k")] == ["second"]
        cache.put("k", JudgeReply.from_text("again", "j"))
        assert [reply.text for reply in cache.get("k")] == ["again", "second"]
    [record] = caplog.records
    assert f"the reply cache {path} has damaged entries" in record.getMessage()


BODY = {"messages": [{"role": "user", "content": "a"}], "temperature": 0.0, "max_tokens": 5}


@pytest.mark.parametrize(
    ("judge", "changes"),
    [
        ("other", {}),
        ("j", {"messages": [{"role": "user", "content": "b"}]}),
        ("j", {"messages": [{"role": "system", "content": "a"}]}),
        ("j", {"temperature": 1.0}),
        ("j", {"max_tokens": 6}),
        ("j", {"top_logprobs": 5}),
    ],
)
def test_keys_tell_questions_apart(judge: str, changes: Mapping[str, Any]) -> None:
    assert reply_key("j", BODY) == reply_key("j", dict(reversed(BODY.items())))
    assert reply_key(judge, {**BODY, **changes}) != reply_key("j", BODY)


def test_read_only_makes_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    with ReplyCache(path, read_only=True) as cache:
        assert cache.get("k") == []
    assert not path.exists()
    with ReplyCache(path) as cache:
        cache.put("k", JudgeReply.from_text("x", "j"))
    with ReplyCache(path, read_only=True) as cache:
        assert len(cache.get("k")) == 1
        with pytest.raises(JudgeError, match=r"replies cannot be stored: .*read-only"):
            cache.put("k", JudgeReply.from_text("x", "j"))


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to look at: " * 50)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    for path in (text, other, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(DataError, match=path.name):
            ReplyCache(path)
        assert path.is_dir() or path.read_bytes() == before


def test_shipped_prices_and_those_of_the_user(tmp_path: Path) -> None:
    shipped = PriceTable.load()
    # 1,000 prompt and 500 output tokens at 30 and 60 dollars per million.
    assert shipped.cost("gpt-4-0613", JudgeUsage(1000, 500)) == pytest.approx(0.06)
    assert shipped.cost("my-model", JudgeUsage(1000, 500)) is None
    assert shipped.cost("gpt-4-0613", None) is None
    mine = tmp_path / "prices.toml"
    mine.write_text('[models."my-model"]\ninput = 0\noutput = 0\n[models."gpt-4-0613"]\ninput = 1\noutput = 1\n')
    table = PriceTable.load(mine)
    assert table.cost("my-model", JudgeUsage(1000, 500)) == 0
    assert table.cost("gpt-4-0613", JudgeUsage(10**6, 0)) == 1
    assert table.price("gpt-4o") == shipped.price("gpt-4o")


@pytest.mark.parametrize(
    "text",
    ["nonsense", "x = 1", '[models."m"]\ninput = 1', '[models."m"]\ninput = 1\noutput = -1',
     '[models."m"]\ninput = "1"\noutput = 1', '[models."m"]\ninput = nan\noutput = 1', "models = 3",
     '[models."m"]\ninput = 1\noutput = 1\ncached = 1', '[models."m"]\ninput = true\noutput = 1'],
)  # fmt: skip
def test_bad_price_tables_are_named(tmp_path: Path, text: str) -> None:
    from ragalign.errors import ConfigError

    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"prices\.toml"):
        PriceTable.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        PriceTable.load(tmp_path / "missing.toml")


@given(st.text(max_size=200), st.integers(1, 100))
def test_quotes_are_never_below_the_price_of_what_was_used(text: str, max_tokens: int) -> None:
    item = Item("1", (text,), Answer("m", (text,)))
    request = JudgeRequest("1", item, (Turn("user", text),), JudgeParameters(max_tokens=max_tokens))
    guess = guess_usage(request)
    # No tokenizer makes more tokens of ASCII prose than a third of its bytes, but any may count four for the frame.
    assert guess.n_prompt_tokens >= len(text.encode("utf-8", "surrogatepass")) / 3 + 4
    assert guess.n_output_tokens == max_tokens
    price = Price(2.0, 8.0)
    quote = Quote.of_request(price, guess)
    assert quote.of(JudgeUsage(guess.n_prompt_tokens, 0)) <= quote.at_most == quote.of(None)
    assert Quote.of_request(None, guess).at_most == 0
