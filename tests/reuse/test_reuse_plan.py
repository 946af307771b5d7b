"""What of a prompt is reused, as it travels to the engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import DataError
from ragalign.reuse_plan import ReusePlan

plans = st.builds(
    ReusePlan,
    key=st.text("0123456789abcdef", min_size=1),
    n_prefix_tokens=st.integers(0, 500),
    lengths=st.lists(st.integers(1, 500), max_size=9).map(tuple),
    keep=st.sampled_from(["", "a", "b"]),
)


@given(plans)
def test_a_plan_comes_back_from_its_parameters(plan: ReusePlan) -> None:
    assert ReusePlan.from_params(plan.params()["ragalign"]) == plan


@given(plans, plans)
def test_salts_are_shared_only_where_as_many_demonstrations_of_one_store_are_reused(a: ReusePlan, b: ReusePlan) -> None:
    same = (a.key, len(a.lengths), a.keep) == (b.key, len(b.lengths), b.keep)
    assert (a.cache_salt == b.cache_salt) == (same or (a.keep != "" and a.keep == b.keep))


@given(plans, plans, st.uuids())
def test_a_salt_of_its_own_still_belongs_to_its_plan(plan: ReusePlan, other: ReusePlan, name: object) -> None:
    assert plan.accepts(plan.cache_salt)
    assert plan.accepts(plan.own_salt(str(name)))
    assert not plan.accepts(None)
    assert plan.own_salt(str(name)) != plan.cache_salt
    assert plan.accepts(other.cache_salt) == (plan.cache_salt == other.cache_salt)
    assert plan.accepts(other.own_salt("x")) == (plan.cache_salt == other.cache_salt)


@given(plans, st.integers(0, 6000))
def test_tokens_that_were_not_computed_are_exact_or_reused(plan: ReusePlan, n_ready: int) -> None:
    exact, reused = plan.split(n_ready)
    assert exact + reused == n_ready
    assert 0 <= reused <= plan.n_tokens
    assert reused == 0 or exact >= plan.n_prefix_tokens


@pytest.mark.parametrize(
    "params",
    [None, [], "x", {}, {"key": "k", "prefix": -1, "lengths": [], "keep": ""}]
    + [{"key": "k", "prefix": 1, "lengths": lengths, "keep": ""} for lengths in ("12", None, [1.5], [True], [-2])],
)
def test_what_is_no_plan_is_refused(params: Any) -> None:
    with pytest.raises(DataError, match="malformed"):
        ReusePlan.from_params(params)
