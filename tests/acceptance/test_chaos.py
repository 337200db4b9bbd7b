"""A slice of the chaos run, a few minutes long; an hour of it is `python benchmarks/chaos.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cotenant.jobs.queue.emulator import find_emulator

ROOT = Path(__file__).parents[2]
#: What is broken when, and who asks for what. How it interleaves differs from run to run all the same.
SEED = os.environ.get("COTENANT_CHAOS_SEED", "4")


@pytest.mark.timeout(620)
def test_whatever_is_killed_no_job_is_lost_none_has_two_results_and_no_message_stays(tmp_path: Path) -> None:
    found = find_emulator()
    if isinstance(found, str):
        pytest.skip(found)
    told = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--slice", "--seed", SEED, "--json", str(told)],
        env={**os.environ, "COTENANT_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}\n{done.stderr}"
    report = json.loads(told.read_text())
    assert report["wrongs"] == []
    assert report["unsettled"] == 0
    assert report["jobs"] >= 600
    assert len(report["faults_by_kind"]) >= 8
