"""Which server a prompt belongs to."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._upstream_servers import Servers
from ragalign.generation.affinity import affinity_key, ranked
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder
from ragalign.retrieval import FixedRetriever
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Prompt, Turn

KEYS = st.text(alphabet="0123456789abcdef", min_size=1, max_size=8)
NAMES = st.lists(st.integers(0, 99).map(lambda n: f"http://gpu{n}:8000/v1"), min_size=2, max_size=8, unique=True)


@given(KEYS, NAMES)
def test_a_server_that_leaves_moves_only_its_own_share(key: str, servers: list[str]) -> None:
    order = [servers[position] for position in ranked(key, servers)]
    assert sorted(order) == sorted(servers)
    for gone in servers:
        left = [server for server in servers if server != gone]
        assert [left[position] for position in ranked(key, left)] == [server for server in order if server != gone]


@given(KEYS, NAMES, st.randoms())
def test_fronts_agree_in_whatever_order_they_name_the_servers(key: str, servers: list[str], shuffle: object) -> None:
    others = servers.copy()
    shuffle.shuffle(others)  # type: ignore[attr-defined]
    assert servers[ranked(key, servers)[0]] == others[ranked(key, others)[0]]


def test_keys_are_spread_evenly() -> None:
    servers = [f"http://10.0.0.{n}:8000/v1" for n in range(4)]
    counts = Counter(ranked(f"{key:032x}", servers)[0] for key in range(4000))
    # Four binomial counts of 1,000 with a standard deviation of 27.
    assert all(abs(counts[position] - 1000) < 5 * 27 for position in range(4))


def test_a_new_server_takes_only_its_share() -> None:
    servers = [f"http://10.0.0.{n}:8000/v1" for n in range(4)]
    keys = [f"{key:032x}" for key in range(4000)]
    before = [ranked(key, servers[:3])[0] for key in keys]
    after = [ranked(key, servers)[0] for key in keys]
    moved = [new for old, new in zip(before, after, strict=True) if new != old]
    assert set(moved) == {3}
    assert abs(len(moved) - 1000) < 5 * 27


@pytest.fixture(scope="module")
def packers(tiny_model: object) -> dict[str, Packer]:
    tokenizer = Tokenizer.load(str(tiny_model))
    pool = Pool.load(data_folder() / "starter.jsonl")
    template, constants = Recipe.load("urial").make_template()
    packing = Packing(order="most_similar_first", max_tokens=100_000, max_demonstration_tokens=100_000)
    return {
        "ica": Packer(Template.load("ica"), tokenizer, pool, packing=packing),
        "urial": Packer(template, tokenizer, pool, packing=packing, constants=constants),
    }


def key_of(packer: Packer, turns: list[Turn], hits: tuple[int, ...] = (), opening: str | None = None) -> str:
    ids = packer.pool.ids
    found = [Hit(ids[number], 1 - rank / 10, rank) for rank, number in enumerate(hits, 1)]
    prompt = packer.pack(turns, found)
    return affinity_key(replace(prompt, opening=turns[0].content if opening is None else opening))


def conversation(*texts: str) -> list[Turn]:
    return [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


def test_prompts_that_begin_alike_share_a_key(packers: dict[str, Packer]) -> None:
    ica, urial = packers["ica"], packers["urial"]
    sky, sea = conversation("Why is the sky blue?"), conversation("Why is the sea salty?")
    later = conversation("Why is the sky blue?", "Scattering.", "And at night?")
    # The same leading demonstration, whatever follows.
    assert key_of(ica, sky, (3, 4)) == key_of(ica, sea, (3, 5, 6)) == key_of(ica, later, (3, 4))
    assert key_of(ica, sky, (3, 4)) != key_of(ica, sky, (4, 3))
    # The same constants and the same conversation.
    assert key_of(urial, sky) == key_of(urial, later)
    assert key_of(urial, sky) != key_of(urial, sea)
    # Other constants.
    assert key_of(urial, sky, (3,)) != key_of(ica, sky, (3,))
    assert key_of(urial, sky) != key_of(ica, sky)
    assert key_of(urial, [Turn("system", "Be brief."), *sky], opening="x") != key_of(urial, sky, opening="x")


def test_demonstrations_that_every_prompt_has_are_constants(packers: dict[str, Packer]) -> None:
    ica = packers["ica"]
    [hits] = FixedRetriever(demonstrations=ica.pool).retrieve(["Any question."], 3)
    sky, sea, later = (
        affinity_key(replace(ica.pack(turns, hits), opening=turns[0].content))
        for turns in (
            conversation("Why is the sky blue?"),
            conversation("Why is the sea salty?"),
            conversation("Why is the sky blue?", "Scattering.", "And at night?"),
        )
    )
    assert sky == later != sea


def test_plain_prompts_are_told_apart_by_their_first_tokens() -> None:
    ids = np.arange(200, dtype=np.int32)
    longer, other = np.append(ids, ids), ids[::-1].copy()
    assert affinity_key(Prompt(("",), ids)) == affinity_key(Prompt(("",), longer))
    assert affinity_key(Prompt(("",), ids)) != affinity_key(Prompt(("",), other))


URLS = ["http://a:1", "http://b:1", "http://c:1"]


def test_a_busy_server_is_passed_over_by_the_margin_and_in_order() -> None:
    servers = Servers(URLS, {}, margin=2)
    order = [f"{URLS[position]}" for position in ranked("k", [f"{url}/v1" for url in URLS])]
    chosen = [servers.choose("k") for _ in range(9)]
    names = [server.name for server in chosen]
    # Three more than the idle ones is one too many; then the next in order is used, until it is too busy itself.
    assert names[:6] == [order[0]] * 3 + [order[1]] * 3
    assert names[6] == order[2]
    for server in chosen:
        servers.release(server)
    assert servers.choose("k").name == order[0]


@given(st.integers(0, 5), st.lists(st.tuples(KEYS, st.booleans()), max_size=40))
def test_no_server_is_busier_than_the_margin_allows(margin: int, steps: list[tuple[str, bool]]) -> None:
    servers = Servers(URLS, {}, margin=margin)
    active: list[object] = []
    for key, ends in steps:
        least = min(server.n_active for server in servers._servers)
        chosen = servers.choose(key)
        active.append(chosen)
        assert chosen.n_active <= least + margin + 1
        if ends:
            servers.release(active.pop(0))  # type: ignore[arg-type]


def test_without_affinity_the_least_busy_server_is_next() -> None:
    servers = Servers(URLS, {}, affinity="none")
    assert Counter(servers.choose("k").name for _ in range(9)) == dict.fromkeys(URLS, 3)


def test_dead_servers_are_left_out_and_come_back() -> None:
    servers = Servers(URLS, {})
    first = servers.choose("k")
    servers.release(first)
    first.alive = False
    second = servers.choose("k")
    assert second is not first
    first.alive = True
    assert servers.choose("k") is first
    for server in servers._servers:
        server.alive = False
    assert not servers.any_alive
    with pytest.raises(GenerationError, match="no upstream server can answer"):
        servers.choose("k")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"affinity": "session"}, "prefix or none"), ({"margin": -1}, "at least 0")],
)
def test_wrong_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Servers(URLS, {}, **options)  # type: ignore[arg-type]
