"""Planning: choosing and ordering demonstrations and requests across a batch, so that prompts share prefixes."""

from ragalign.planning.cache import PrefixCache
from ragalign.planning.frontier import FrontierPoint, default_settings, frontier
from ragalign.planning.online import OnlinePlanner
from ragalign.planning.planner import Plan, Planner
from ragalign.planning.prefix_memory import PrefixMemory
from ragalign.planning.strategies import PlannerSettings

__all__ = [
    "FrontierPoint",
    "OnlinePlanner",
    "Plan",
    "Planner",
    "PlannerSettings",
    "PrefixCache",
    "PrefixMemory",
    "default_settings",
    "frontier",
]
