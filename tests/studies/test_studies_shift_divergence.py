"""Divergences against SciPy; with less known, a lower bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy

from ragalign.generation.distributions import from_dense, from_tensor
from ragalign.studies.shift.divergence import divergences

LOGITS = arrays(np.float32, (5, 12), elements=st.floats(-9, 9, width=32))


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


@given(LOGITS, LOGITS, st.integers(3, 12))
def test_divergence_is_scipys_and_its_bound_is_below(first: Any, second: Any, top_k: int) -> None:
    import torch

    p, q = log_softmax(first), log_softmax(second)
    ids = [0, 3, 11, 5, 2]
    expected = entropy(np.exp(p.astype(np.float64)), np.exp(q.astype(np.float64)), axis=1)
    np.testing.assert_allclose(divergences(from_dense(p, ids), from_dense(q, ids)), expected, atol=1e-4)
    tops = [from_tensor(torch.tensor(one), ids, top_k) for one in (p, q)]
    bound = divergences(*tops)
    assert (bound >= 0).all()
    assert (bound <= expected + 1e-4).all()
    if top_k == 12:
        np.testing.assert_allclose(bound, expected, atol=1e-4)


def test_a_model_does_not_diverge_from_itself() -> None:
    import torch

    p = log_softmax(np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32))
    shown = from_tensor(torch.tensor(p), [1, 2, 3, 4], 5)
    assert divergences(shown, shown).max() == 0
