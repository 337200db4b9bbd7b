"""A workload of the platform file to its estimate: the kind decides which arithmetic."""

from __future__ import annotations

from cotenant.config import Workload
from cotenant.gpu.fit import image, llm, mockup
from cotenant.gpu.fit.image import ImageFacts
from cotenant.gpu.fit.llm import LlmFacts, LlmLoad
from cotenant.gpu.fit.locate import Facts
from cotenant.gpu.fit.mockup import MockupFacts
from cotenant.gpu.fit.parts import Fit


def fit_workload(name: str, workload: Workload, accelerator: str, facts: Facts, *, least: bool = False) -> Fit:
    """What one replica of a workload takes of one GPU of `accelerator`.

    `least` is what it can serve one request of its largest kind with; otherwise the typical need, which
    `vram_gib: auto` takes. Each kind's module says what it takes those to be.
    """
    if workload.mockup is not None and isinstance(facts, MockupFacts):
        return mockup.fit(name, workload.mockup, workload.slots, accelerator, facts, least=least)
    if workload.llm is not None and isinstance(facts, LlmFacts):
        load = LlmLoad.of(workload.llm, workload.slots)
        return llm.need(facts, load, accelerator).fit(name, least=least)
    if workload.image is not None and isinstance(facts, ImageFacts):
        return image.fit(name, workload.image, accelerator, facts, least=least)
    raise TypeError(f"{name} is of the kind {workload.kind}, and its facts are {type(facts).__name__}")
