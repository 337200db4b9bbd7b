"""The MIG catalogue agrees with the accelerators', and slices never hold more than the GPU they are cut from."""

from __future__ import annotations

import pytest

from cotenant.config import Pool
from cotenant.errors import PlanError
from cotenant.gpu.accelerators import ACCELERATORS, gpus_per_node, usable_gib
from cotenant.gpu.mig import PROFILES, Profile, profile

pytestmark = pytest.mark.unit

ALL = [(accelerator, one) for accelerator, profiles in PROFILES.items() for one in profiles.values()]


@pytest.mark.parametrize(("accelerator", "one"), ALL, ids=[f"{name}-{one.name}" for name, one in ALL])
def test_slices_together_fit_their_gpu_and_each_is_usable(accelerator: str, one: Profile) -> None:
    assert one.slices * one.gib <= ACCELERATORS[accelerator].total_gib
    assert one.gib <= float(one.name.split(".")[1].removesuffix("gb"))
    pool = Pool(accelerator=accelerator, mig=one.name, gpus_per_node=2)
    assert 0.85 * one.gib < usable_gib("p", pool) < one.gib
    assert gpus_per_node("p", pool) == 2 * one.slices


def test_a_gpu_that_is_not_cut_is_one() -> None:
    assert gpus_per_node("p", Pool(accelerator="nvidia-l4", gpus_per_node=4)) == 4


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(PlanError, match=r"can't be cut into; it has 1g\.24gb \(x4\), 2g\.48gb \(x2\), 4g\.96gb"):
        profile("p", "nvidia-rtx-pro-6000", "3g.71gb")
