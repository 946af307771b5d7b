"""What people see when they print an object or list a module."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import ragalign
from ragalign import Completion, Prompt
from ragalign.types import DroppedDemonstration, Output, UsedDemonstration


@pytest.mark.parametrize("n", [0, 1, 900, 5000])
def test_prompts_and_completions_print_short(n: int) -> None:
    used = tuple(UsedDemonstration(f"id{k}", None, 0.5, 9) for k in range(n // 100))
    dropped = tuple(DroppedDemonstration(f"x{k}", None, 0.5, 9, "stopped") for k in range(n // 10))
    prompt = Prompt(pieces=("text " * n,) * 5, ids=np.arange(n, dtype=np.int32), demonstrations=used, dropped=dropped)
    completion = Completion(prompt, (Output("answer\n" * n, "stop", n, tuple(range(n))),) * 7, n_cached_tokens=n)
    for shown in (repr(prompt), str(prompt), repr(completion), str(completion), repr(completion.outputs[0])[-40:]):
        assert len(shown) < 300
        assert "\n" not in shown
    assert f"{n:,} tokens" in repr(prompt)
    assert f"{n:,} prompt tokens ({n:,} cached)" in repr(completion)
    assert "and 5 more" in repr(completion)
    assert "token_ids" not in repr(completion.outputs[0])


def test_objects_that_hold_little_print_too() -> None:
    assert repr(Prompt(pieces=(), ids=np.array([], np.int32))) == "Prompt(0 tokens, 0 demonstrations, '')"
    assert "0 output tokens" in repr(Completion(Prompt(pieces=(), ids=np.array([], np.int32)), ()))


def test_a_module_lists_its_public_names() -> None:
    for name in ("ragalign", "ragalign.generation", "ragalign.serving"):
        module = importlib.import_module(name)
        assert [one for one in dir(module) if not one.startswith("__")] == sorted(module.__all__)
    assert {"__all__", "__doc__", "__file__"} <= set(dir(ragalign))
