"""From a budget of bytes to a configuration: what `mgqe.plan`, `budget=` and the command `mgqe plan` share."""

from mgqe.codec.planning.budget import budget_bytes
from mgqe.codec.planning.planner import COUNTS_POWER, Problem, plan
from mgqe.codec.planning.plans import Plan, RowsPlan

__all__ = ["COUNTS_POWER", "Plan", "Problem", "RowsPlan", "budget_bytes", "plan"]
