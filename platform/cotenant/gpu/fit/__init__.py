"""What a workload will take of a GPU, estimated before anything runs: parts with bytes, formulas and sources.

Pure but for two edges of one file each: `folder` reads local files, `hub` asks the Hugging Face hub.
"""

from cotenant.gpu.fit.estimate import fit_workload
from cotenant.gpu.fit.folder import FactsMissing
from cotenant.gpu.fit.locate import Facts, Hub, InMemoryHub, facts_of
from cotenant.gpu.fit.parts import Fit, Part

__all__ = ["Facts", "FactsMissing", "Fit", "Hub", "InMemoryHub", "Part", "facts_of", "fit_workload"]
