"""What every part of the platform file is made of: strict frozen models, and names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: What a workload, pool or environment may be called: it becomes part of Serve, Ray and Kubernetes names.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

#: A YAML list; strictness would want a tuple.
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Model(BaseModel):
    """Unknown keys are refused, values are of the type that is named and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class Misplaced(ValueError):
    """A rule broken between parts of the file; `path` leads to the part to change."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path
