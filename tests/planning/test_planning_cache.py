"""The simulated prefix cache against the real engine's own counters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ragalign.errors import ConfigError
from ragalign.generation import VllmGenerator
from ragalign.generation._vllm_start import CPU_BLOCK_SIZE
from ragalign.planning import PrefixCache
from ragalign.types import Decoding, Prompt

ONE_TOKEN, FEW_TOKENS = Decoding(max_tokens=1), Decoding(max_tokens=2)
N_REQUESTS = 300
N_BLOCKS = 25

# One request at a time, in an engine with little room.
SMALL_ENGINE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_planning_cache import FEW_TOKENS, N_BLOCKS, requests
from ragalign.generation import VllmGenerator

with VllmGenerator(
    Path(sys.argv[2]), dtype="float32", max_model_len=512, num_gpu_blocks_override=N_BLOCKS + 1, max_num_seqs=1
) as engine:
    answers = engine.generate(requests(), FEW_TOKENS)
print(json.dumps([(one.n_cached_tokens, one.n_output_tokens) for one in answers]))
"""


def requests(key: int = 0) -> list[Prompt]:
    """Prompts of a branching family: continued, cut at and around the ends of blocks, and asked again."""
    random = np.random.default_rng(key)
    family = [random.integers(260, 500, size=40, dtype=np.int32)]
    while len(family) < N_REQUESTS:
        parent = family[random.integers(max(0, len(family) - 40), len(family))]
        cut = int(random.integers(1, len(parent) + 1))
        if random.random() < 0.4:
            cut = max(1, cut // CPU_BLOCK_SIZE * CPU_BLOCK_SIZE + int(random.integers(-1, 2)))
        new = random.integers(260, 500, size=int(random.choice([0, 1, 5, 32, 70])), dtype=np.int32)
        family.append(np.concatenate([parent[:cut], new])[:400])
    return [Prompt(pieces=("",), ids=ids) for ids in family]


def test_same_cached_tokens_as_the_engine_in_one_batch(vllm_engine: VllmGenerator) -> None:
    # A first token that no other test begins with, since the engine remembers what they asked.
    prompts = [replace(prompt, ids=np.insert(prompt.ids, 0, 511)) for prompt in requests()]
    completions = vllm_engine.generate(prompts, ONE_TOKEN)
    cache = PrefixCache(CPU_BLOCK_SIZE)
    expected = [cache.ask(prompt.ids) for prompt in prompts]
    assert [one.n_cached_tokens for one in completions] == expected
    assert sum(expected) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # one request at a time takes long on a busy machine
def test_same_cached_tokens_as_a_small_engine(tiny_model: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SMALL_ENGINE, str(Path(__file__).parent), str(tiny_model)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    cached, n_output = zip(*json.loads(run.stdout), strict=True)
    limited, unlimited = PrefixCache(CPU_BLOCK_SIZE, N_BLOCKS), PrefixCache(CPU_BLOCK_SIZE)
    # Answers are told apart from prompts; which tokens they have does not matter.
    answers = [[-1 - number] * n for number, n in enumerate(n_output)]
    asked = list(zip(requests(), answers, strict=True))
    assert [limited.ask(prompt.ids, answer) for prompt, answer in asked] == list(cached)
    assert sum(unlimited.ask(prompt.ids, answer) for prompt, answer in asked) > sum(cached)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    wide, unlimited = PrefixCache(16, 100_000), PrefixCache(16)
    for prompt in requests(1):
        assert wide.ask(prompt.ids) == unlimited.ask(prompt.ids)


def test_answers_are_kept_but_for_their_last_token() -> None:
    for capacity in (None, 10):
        cache = PrefixCache(4, capacity)
        assert cache.ask([1, 2, 3], [4, 5]) == 0
        assert cache.ask([1, 2, 3, 4, 5, 6, 7]) == 4
        assert cache.ask([1, 2, 3, 4, 5, 6, 7, 8]) == 4
        assert cache.ask([1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8


def test_the_least_recently_used_go_first_and_ends_before_beginnings() -> None:
    cache = PrefixCache(1, 6)
    assert [cache.ask(ids) for ids in ([1, 2, 3], [4, 5, 6])] == [0, 0]
    assert cache.ask([7]) == 0  # takes the place of the 3
    assert cache.ask([1, 2, 3]) == 2
    assert cache.ask([4, 5, 6, 8]) == 2  # its 6 gave its place to the 3


def test_a_request_longer_than_the_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="40 tokens, but the cache has room for only 32"):
        PrefixCache(16, 2).ask(range(40))
