"""What an environment costs a month, from its plan. Pure."""

from cotenant.cost.monthly import HOURS_PER_MONTH, Cost, PoolCost, monthly_cost

__all__ = ["HOURS_PER_MONTH", "Cost", "PoolCost", "monthly_cost"]
