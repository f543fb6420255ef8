"""From a budget of bytes to a configuration: what `mgqe.plan`, `budget=` and the command `mgqe plan` share."""

from mgqe.planning.budget import budget_bytes
from mgqe.planning.layer import CHOSEN, check_left_to_budget
from mgqe.planning.plan import COUNTS_POWER, Plan, Problem, plan

__all__ = ["CHOSEN", "COUNTS_POWER", "Plan", "Problem", "budget_bytes", "check_left_to_budget", "plan"]
