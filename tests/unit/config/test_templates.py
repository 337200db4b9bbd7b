"""Templates are named by their files' stems, so two of one stem cannot be told apart."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cotenant.config import MockupSpec

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("templates", [("mug", "mug"), ("mug", "art/mug.glb"), ("a/x.glb", "b/x.glb")])
def test_two_templates_of_one_name_are_refused(templates: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="twice"):
        MockupSpec(templates=templates)
