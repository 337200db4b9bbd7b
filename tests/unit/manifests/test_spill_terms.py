"""What the doors are told of spilling, and what of it restarts what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cotenant.config import Platform, load_platform
from cotenant.errors import ConfigError
from cotenant.gpu.plan import plan
from cotenant.manifests.serve import serve_config
from cotenant.manifests.spill import spill_terms
from cotenant.upstream.outlet import Terms

pytestmark = pytest.mark.unit


def a_platform(**spill: Any) -> Platform:
    workload: dict[str, Any] = {"llm": {"model": "tiny"}, "gpu": {"vram_gib": 4}, "target_wait_s": 3}
    if spill:
        workload["spill"] = spill
    return Platform.model_validate(
        {
            "name": "acme",
            "environment": "prod",
            "workloads": {"writer": workload, "mockups": {"mockup": {}, "gpu": {"vram_gib": 1}}},
            "pools": {"shared": {"accelerator": "cpu", "vram_gib": 12}},
            "gateway": {"replicas": 3},
        }
    )


URL = "https://writer-abc.a.run.app"


def test_a_workload_that_spills_is_told_with_what_the_file_leaves_out() -> None:
    [told] = spill_terms(a_platform(url=URL, auth="google"))
    assert Terms.of(told) == Terms(
        workload="writer",
        kind="llm",
        url=URL,
        google=True,
        model="tiny",
        after_wait_s=3.0,
        max_concurrency=64,
        start_s=70.0,
        gateways=3,
        spilled_from="acme-prod",
    )


def test_what_the_file_says_goes_before() -> None:
    [told] = spill_terms(
        a_platform(url=URL, key_env="K", model="theirs", after_wait_s=0.0, max_concurrency=5, jobs=True)
    )
    terms = Terms.of(told)
    assert (terms.key_env, terms.model, terms.after_wait_s) == ("K", "theirs", 0.0)
    assert (terms.max_concurrency, terms.jobs, terms.google) == (5, True, False)


def test_another_url_changes_what_doors_are_told_and_nothing_that_restarts() -> None:
    before, after = (serve_config(platform, plan(platform)) for platform in (a_platform(), a_platform(url=URL)))
    for one, other in zip(before["applications"], after["applications"], strict=True):
        if one["name"] not in ("gateway", "ingress"):
            assert one == other
            continue
        (mine,), (theirs,) = one.pop("deployments"), other.pop("deployments")
        assert one == other
        assert "spill" not in mine["user_config"]
        assert theirs["user_config"].pop("spill") == spill_terms(a_platform(url=URL))
        assert mine == theirs


def test_no_secret_is_told_only_where_it_is() -> None:
    assert "sk-" not in str(spill_terms(a_platform(url=URL, key_env="COTENANT_SPILL_KEY")))


FILE = """workloads:
  mockups:
    mockup: {{}}
    gpu: {{vram_gib: 1}}
    spill: {spill}
environments: {{local: {{pools: {{shared: {{accelerator: cpu, vram_gib: 12}}}}}}}}
"""


@pytest.mark.parametrize(
    ("spill", "said"),
    [
        pytest.param("{}", "spill.url is missing", id="no url"),
        pytest.param("{url: 'https://u:p@x.run.app'}", "spill.url", id="a password in it"),
        pytest.param("{url: 'ftp://x.run.app'}", "spill.url", id="another scheme"),
        pytest.param("{url: 'https://x.run.app/v1?a=b'}", "spill.url", id="a query"),
        pytest.param("{url: 'https://x.run.app', key: sk-1}", "spill.key is not a key here", id="the key itself"),
        pytest.param("{url: 'http://10.0.0.1', auth: google}", "use https", id="a token in the clear"),
        pytest.param("{url: 'https://x.run.app', model: m}", "names spill.model", id="a mockup's model"),
        pytest.param("{url: 'https://x.run.app', max_concurrency: 0}", "max_concurrency", id="nothing at all"),
        pytest.param("{url: 'https://x.run.app', auth: basic}", "auth", id="another way in"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, spill: str, said: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(FILE.format(spill=spill))
    with pytest.raises(ConfigError) as caught:
        load_platform(file, "local")
    assert said in str(caught.value)
    assert "platform.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://x.run.app", "http://10.0.0.1:8000", "http://localhost:8001/other/", "http://a"]
)
def test_a_url_may_be_public_or_private(tmp_path: Path, url: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(FILE.format(spill=f"{{url: '{url}'}}"))
    spill = load_platform(file, "local").workloads["mockups"].spill
    assert spill is not None
    assert spill.url == url
