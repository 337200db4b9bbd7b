"""What must stay true of the repository's shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def test_platform_is_a_source_root_and_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "platform/cotenant/py.typed").exists()


def test_import_platform_from_the_repository_is_the_standard_librarys() -> None:
    program = "import platform, sys; print(platform.__file__, platform.python_implementation())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    file, implementation = done.stdout.split()
    assert not Path(file).is_relative_to(ROOT / "platform")
    assert implementation == "CPython"
