"""How a render is cut: every pixel once, chunks of about the paths wanted, whole rows where those are needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.engines.mockup.chunks import PATHS, cut, paths_of

pytestmark = pytest.mark.unit


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 300),
    samples=st.integers(1, 5000),
    paths=st.integers(1, 2**22),
    rows=st.booleans(),
)
def test_every_pixel_is_in_one_chunk_and_no_chunk_is_longer_than_it_has_to_be(
    width: int, height: int, samples: int, paths: int, rows: bool
) -> None:
    grain = width if rows else 1
    found = []
    for first, count in cut(width * height, samples, max(paths, width * height * samples // 500), grain=grain):
        assert first == (found[-1][0] + found[-1][1] if found else 0)
        assert count % grain == 0
        found.append((first, count))
    assert sum(count for _, count in found) == width * height
    paths = max(paths, width * height * samples // 500)
    assert all(count * samples <= max(paths, grain * samples) for _, count in found)
    assert len({count for _, count in found[:-1]}) <= 1, "all but the last are of one size"


def test_a_render_of_a_thousand_pixels_a_side_is_many_short_chunks() -> None:
    assert len(list(cut(1024**2, 16, PATHS["llvm"]))) == 64
    assert list(cut(100, 4096, 2**18)) == [(0, 64), (64, 36)]


def test_every_variant_has_its_chunk() -> None:
    assert [paths_of(name) for name in ("cuda_ad_rgb", "llvm_ad_rgb", "scalar_rgb")] == [2**21, 2**18, 2**15]
