"""Planning: demonstrations, their order and the order of requests, across a batch, so that prompts share prefixes."""

from ragalign.planning.cache import PrefixCache
from ragalign.planning.planner import Plan, Planner
from ragalign.planning.strategies import PlannerSettings

__all__ = ["Plan", "Planner", "PlannerSettings", "PrefixCache"]
