"""Machine types that pools are made of: what GPUs and CPUs a node has, and what it costs by list.

**List prices, to be overridden by a pool's `usd_per_h`.** Google Cloud, region us-central1, USD per hour of one
node with its GPUs, without disks, network, GKE's fee, taxes and discounts.

How well each figure is known:

- read: a2-highgpu-1g and -2g, on-demand and spot, from an export of Google's price catalogue generated on
  `PRICES_AS_OF` (github.com/Cyclenerd/google-cloud-pricing-cost-calculator, pricing.yml);
- agreeing with other published tables to the cent, dates unknown: g2-standard-4 and -8, n1-standard-4 and -8, the
  T4, a3-highgpu-8g; g4-standard-48 as published in 2026-07;
- computed from component prices or as multiples of those, and not checked again: all other rows. A published
  table has a2-ultragpu-8g at 40.22 where this one says 40.55.

**Spot prices change up to daily.** Where none was read they are 40 % of on-demand, the least discount that Google's
spot page used to promise (60 to 91 %): good for comparing pools, not for a budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.config import Pool

PRICES_AS_OF = "2025-03-06"
PRICES_REGION = "us-central1"
_SPOT_OF_ON_DEMAND = 0.40


@dataclass(frozen=True)
class Machine:
    """A machine type. `gpus` is None where GPUs are attached by choice (N1), `accelerator` then too."""

    name: str
    vcpus: int
    memory_gib: float
    on_demand_usd_per_h: float
    accelerator: str | None = None
    gpus: int | None = 0
    read_spot_usd_per_h: float | None = None

    def usd_per_h(self, *, spot: bool) -> float:
        """List price of one node per hour, without attached GPUs."""
        if not spot:
            return self.on_demand_usd_per_h
        if self.read_spot_usd_per_h is not None:
            return self.read_spot_usd_per_h
        return round(self.on_demand_usd_per_h * _SPOT_OF_ON_DEMAND, 4)


MACHINES = {
    machine.name: machine
    for machine in (
        Machine("e2-standard-2", 2, 8, 0.0670),
        Machine("e2-standard-4", 4, 16, 0.1340),
        Machine("e2-standard-8", 8, 32, 0.2680),
        Machine("e2-standard-16", 16, 64, 0.5360),
        Machine("n1-standard-4", 4, 15, 0.1900, gpus=None),
        Machine("n1-standard-8", 8, 30, 0.3800, gpus=None),
        Machine("n1-standard-16", 16, 60, 0.7600, gpus=None),
        Machine("g2-standard-4", 4, 16, 0.7068, "nvidia-l4", 1),
        Machine("g2-standard-8", 8, 32, 0.8536, "nvidia-l4", 1),
        Machine("g2-standard-12", 12, 48, 1.0004, "nvidia-l4", 1),
        Machine("g2-standard-16", 16, 64, 1.1472, "nvidia-l4", 1),
        Machine("g2-standard-24", 24, 96, 2.0008, "nvidia-l4", 2),
        Machine("g2-standard-32", 32, 128, 1.7343, "nvidia-l4", 1),
        Machine("g2-standard-48", 48, 192, 4.0016, "nvidia-l4", 4),
        Machine("g2-standard-96", 96, 384, 8.0032, "nvidia-l4", 8),
        Machine("g4-standard-48", 48, 180, 4.50, "nvidia-rtx-pro-6000", 1),
        Machine("a2-highgpu-1g", 12, 85, 3.6734, "nvidia-tesla-a100", 1, 1.2934),
        Machine("a2-highgpu-2g", 24, 170, 7.3468, "nvidia-tesla-a100", 2, 2.5867),
        Machine("a2-highgpu-4g", 48, 340, 14.6935, "nvidia-tesla-a100", 4, 5.1734),
        Machine("a2-highgpu-8g", 96, 680, 29.3871, "nvidia-tesla-a100", 8, 10.3468),
        Machine("a2-ultragpu-1g", 12, 170, 5.0688, "nvidia-a100-80gb", 1),
        Machine("a2-ultragpu-2g", 24, 340, 10.1376, "nvidia-a100-80gb", 2),
        Machine("a2-ultragpu-4g", 48, 680, 20.2752, "nvidia-a100-80gb", 4),
        Machine("a2-ultragpu-8g", 96, 1360, 40.5504, "nvidia-a100-80gb", 8),
        Machine("a3-highgpu-1g", 26, 234, 11.0613, "nvidia-h100-80gb", 1),
        Machine("a3-highgpu-2g", 52, 468, 22.1225, "nvidia-h100-80gb", 2),
        Machine("a3-highgpu-4g", 104, 936, 44.2450, "nvidia-h100-80gb", 4),
        Machine("a3-highgpu-8g", 208, 1872, 88.4900, "nvidia-h100-80gb", 8),
    )
}

#: USD per hour of one GPU attached to an N1 node: on-demand, spot.
ATTACHED = {
    "nvidia-tesla-t4": (0.35, 0.14),
    "nvidia-tesla-p100": (1.46, 0.58),
    "nvidia-tesla-v100": (2.48, 0.99),
}


def node_usd_per_h(pool: Pool) -> float | None:
    """What one node of `pool` costs per hour: its own `usd_per_h`, else by list; None if the table lacks it.

    A pool without a machine type is this machine, which is paid for: 0.
    """
    if pool.usd_per_h is not None:
        return pool.usd_per_h
    if pool.machine is None:
        return 0.0 if pool.accelerator in (None, "cpu") else None
    machine = MACHINES.get(pool.machine)
    if machine is None:
        return None
    price = machine.usd_per_h(spot=pool.spot)
    if machine.gpus is not None or pool.accelerator is None:
        return price
    attached = ATTACHED.get(pool.accelerator)
    return None if attached is None else price + pool.gpus_per_node * attached[1 if pool.spot else 0]


def mismatch(name: str, pool: Pool) -> str | None:
    """What is wrong between a pool's machine type and its GPUs, in words; None if nothing (or unknown)."""
    machine = MACHINES.get(pool.machine or "")
    if machine is None or pool.accelerator in (None, "cpu"):
        return None
    if machine.gpus is None:
        if pool.accelerator in ATTACHED:
            return None
        return f"pool {name}: {pool.accelerator} can't be attached to {machine.name}, only {', '.join(ATTACHED)} can"
    if machine.accelerator != pool.accelerator:
        has = machine.accelerator or "no GPU"
        return f"pool {name} says {pool.accelerator}, but {machine.name} has {has}; change accelerator or machine"
    if machine.gpus != pool.gpus_per_node:
        return (
            f"pool {name} says gpus_per_node {pool.gpus_per_node}, but {machine.name} has {machine.gpus}; "
            f"write gpus_per_node: {machine.gpus}"
        )
    return None
