"""The Secrets that `setup.sh` makes and adds to: nothing of theirs is shown, lost or written over."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contracts.played_cloud import SECRETS, SPILLS, Cloud, empty_cloud, ran

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash 4.4"),
]
#: `scripts/test` runs it beside another.
WAITS_MORE_THAN_IT_COMPUTES = True


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return empty_cloud(tmp_path)


def test_no_secret_is_shown_or_given_as_an_argument(cloud: Cloud) -> None:
    done = cloud.run()
    said = ran(done) + done.stderr + (cloud.memory / "calls").read_text()
    for value in (*SECRETS.values(), "token-of-nobody"):
        assert value not in said
        assert base64.b64encode(value.encode()).decode() not in said
    assert cloud.secret() == {**SECRETS, "COTENANT_UPSTREAM_KEY": "very-secret"}
    token, password = cloud.secret("cotenant-ray-token")["auth_token"], cloud.secret("cotenant-redis")["password"]
    assert len({token, password}) == 2
    assert min(len(token), len(password)) > 40


def test_secrets_may_come_from_a_file_and_without_any_it_says_which_it_needs(cloud: Cloud) -> None:
    none = dict.fromkeys(SECRETS, "")
    refused = cloud.run(**none)
    assert refused.returncode == 1
    assert "needs COTENANT_API_KEYS" in refused.stderr
    assert "stopped in step namespace" in refused.stderr
    (cloud.folder / "secrets").write_text("COTENANT_API_KEYS=acme:from-file=1\n")
    ran(cloud.run(SECRETS_FILE=str(cloud.folder / "secrets"), **none))
    assert cloud.secret()["COTENANT_API_KEYS"] == "acme:from-file=1"


def test_a_second_run_adds_the_keys_that_are_new_in_the_platform_file_and_keeps_the_others(cloud: Cloud) -> None:
    ran(cloud.run())
    before = cloud.secret()
    tokens = cloud.secret("cotenant-ray-token"), cloud.secret("cotenant-redis")
    cloud.write(**SPILLS)
    done = cloud.run(COTENANT_API_KEYS="acme:another", WRITER_KEY="sk-of=writer", COTENANT_UPSTREAM_KEY="another")
    said = ran(done) + done.stderr + (cloud.memory / "calls").read_text()
    assert cloud.changes == ["patch secret cotenant-secrets"]
    assert cloud.secret() == {**before, "WRITER_KEY": "sk-of=writer"}
    assert (cloud.secret("cotenant-ray-token"), cloud.secret("cotenant-redis")) == tokens
    assert "(Secret cotenant-secrets with WRITER_KEY)" in done.stdout
    assert "pods that run already get it when they are started anew" in done.stdout
    for value in ("sk-of=writer", *before.values()):
        assert value not in said
        assert base64.b64encode(value.encode()).decode() not in said
    ran(cloud.run())
    assert cloud.changes == []


def test_a_new_key_that_pods_need_and_nobody_gives_is_refused_and_one_that_they_can_do_without_is_told(
    cloud: Cloud,
) -> None:
    ran(cloud.run())
    before = cloud.secret()
    cloud.write(**{"gateway: {": "gateway: {keys_env: EDGE_KEYS, "}, **SPILLS)
    refused = cloud.run()
    assert refused.returncode == 1
    assert (
        "needs EDGE_KEYS (tenant:key, comma-separated) in the environment, or SECRETS_FILE with a line EDGE_KEYS=…"
        in (refused.stderr)
    )
    assert cloud.changes == []
    done = cloud.run(EDGE_KEYS="acme:edge")
    ran(done)
    assert "secret cotenant-secrets is without WRITER_KEY, and so is what reads it" in done.stderr
    assert "run this again with WRITER_KEY in the environment, or SECRETS_FILE with a line WRITER_KEY=…" in done.stderr
    assert cloud.secret() == {**before, "EDGE_KEYS": "acme:edge"}
    (cloud.folder / "secrets").write_text("WRITER_KEY=from-file\n")
    assert ran(cloud.run("--only", "namespace", SECRETS_FILE=str(cloud.folder / "secrets")))
    assert cloud.secret() == {**before, "EDGE_KEYS": "acme:edge", "WRITER_KEY": "from-file"}


def test_a_dry_run_names_the_keys_that_would_be_added_and_those_that_are_not_given(cloud: Cloud) -> None:
    ran(cloud.run())
    cloud.write(**{"gateway: {": "gateway: {keys_env: EDGE_KEYS, "}, **SPILLS)
    done = cloud.run("--dry-run", WRITER_KEY="sk-of-writer")
    said = ran(done) + done.stderr + (cloud.memory / "calls").read_text()
    assert "would run: kubectl patch secret cotenant-secrets" in done.stdout
    assert "(Secret cotenant-secrets with WRITER_KEY)" in done.stdout
    assert "needs EDGE_KEYS" in done.stderr
    assert "sk-of-writer" not in said
    assert base64.b64encode(b"sk-of-writer").decode() not in said
    assert cloud.changes == []


def test_a_key_that_somebody_else_adds_meanwhile_is_not_overwritten(cloud: Cloud) -> None:
    ran(cloud.run())
    cloud.write(**SPILLS)
    (cloud.memory / "meanwhile").write_text(f'  "WRITER_KEY": "{base64.b64encode(b"theirs").decode()}"\n')
    refused = cloud.run(WRITER_KEY="ours")
    assert refused.returncode == 1
    assert "(Conflict)" in refused.stderr
    assert "stopped in step namespace" in refused.stderr
    ran(cloud.run(WRITER_KEY="ours"))
    assert cloud.changes == []
    assert cloud.secret()["WRITER_KEY"] == "theirs"


def test_a_value_is_changed_by_taking_it_out_first_as_its_help_says(cloud: Cloud) -> None:
    ran(cloud.run())
    path = '[{"op": "remove", "path": "/data/NAME"}]'
    assert f"kubectl patch secret cotenant-secrets --namespace=cotenant-dev --type=json --patch='{path}'" in ran(
        cloud.run("--help")
    )
    kept = cloud.memory / "things" / "secret_cotenant-secrets"
    kept.write_text(re.sub(r'  "COTENANT_WEBHOOK_SECRETS".*\n', "", kept.read_text()))
    ran(cloud.run("--only", "namespace", COTENANT_WEBHOOK_SECRETS="acme:new"))
    assert cloud.secret() == {**SECRETS, "COTENANT_WEBHOOK_SECRETS": "acme:new", "COTENANT_UPSTREAM_KEY": "very-secret"}
    kept.write_text(re.sub(r'  "COTENANT_WEBHOOK_SECRETS".*\n', "", kept.read_text()))
    assert "is without COTENANT_WEBHOOK_SECRETS: webhooks are not sent" in ran(cloud.run(COTENANT_WEBHOOK_SECRETS=""))


def test_kubectl_reads_names_and_values_of_keys_by_the_scripts_own_templates(cloud: Cloud) -> None:
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("needs kubectl, by which a file is read (nothing is sent)")
    ran(cloud.run())
    kept = cloud.memory / "things" / "secret_cotenant-secrets"
    held = kept.read_text().strip("\n")
    (cloud.folder / "secret.yaml").write_text(held.replace("}", ', resourceVersion: "7"}', 1))
    kept.write_text(re.sub(r'\n  "COTENANT_UPSTREAM_KEY".*', "", held) + "\n")
    ran(cloud.run("--only", "namespace"))
    asked = [flag for call in cloud.calls if call[1:4] == ["get", "secret", "cotenant-secrets"] for flag in call]
    templates = [flag for flag in asked if flag.startswith("--output=")]
    assert len(templates) == 2
    read = [kubectl, "patch", "--local", "--filename=secret.yaml", "--type=merge", "--patch-file=/dev/stdin"]
    told = [
        subprocess.run(
            [*read, template], cwd=cloud.folder, env={**os.environ, "KUBECONFIG": "/dev/null"}, text=True,
            input='{"metadata": {"labels": {"a": "b"}}}', capture_output=True, timeout=60, check=True,
        ).stdout
        for template in templates
    ]  # fmt: skip
    assert told[0].split("\n") == ["7", "COTENANT_API_KEYS", "COTENANT_UPSTREAM_KEY", "COTENANT_WEBHOOK_SECRETS"]
    assert told[1] == SECRETS["COTENANT_API_KEYS"]


def test_an_ingress_outside_of_ray_asks_with_the_first_key_unless_it_has_its_own(cloud: Cloud) -> None:
    ran(cloud.run(COTENANT_API_KEYS="acme:k-1:x, other:k-2"))
    assert cloud.secret()["COTENANT_UPSTREAM_KEY"] == "k-1:x"
    kept = cloud.memory / "things" / "secret_cotenant-secrets"
    kept.write_text(re.sub(r'  "COTENANT_UPSTREAM_KEY".*\n', "", kept.read_text()))
    ran(cloud.run("--only", "namespace", COTENANT_API_KEYS="acme:not-taken"))
    assert cloud.secret()["COTENANT_UPSTREAM_KEY"] == "k-1:x", "of the keys that the gateway has"
    kept.unlink()
    ran(cloud.run("--only", "namespace", COTENANT_UPSTREAM_KEY="own"))
    assert cloud.secret()["COTENANT_UPSTREAM_KEY"] == "own"


def test_what_is_given_and_not_taken_is_named_and_a_redis_of_ones_own_keeps_the_password_that_is_there(
    cloud: Cloud,
) -> None:
    ran(cloud.run())
    before = cloud.secret("cotenant-redis")
    assert "its COTENANT_API_KEYS COTENANT_WEBHOOK_SECRETS stays as it is" in ran(cloud.run())
    cloud.write(**{"domain: api": "redis: 'r.example.org:6379', domain: api"})
    said = ran(cloud.run("--only", "namespace", REDIS_PASSWORD="theirs"))
    assert "= secret cotenant-redis is there\n  = its password stays as it is" in said
    assert cloud.secret("cotenant-redis") == before
    assert "/data/password of the Secret cotenant-redis, from REDIS_PASSWORD" in ran(cloud.run("--help"))
    kept = cloud.memory / "things" / "secret_cotenant-redis"
    kept.write_text(re.sub(r'  "password".*\n', "", kept.read_text()))
    refused = cloud.run("--only", "namespace")
    assert refused.returncode == 1
    assert "needs REDIS_PASSWORD, that of gke.redis," in refused.stderr
    ran(cloud.run("--only", "namespace", REDIS_PASSWORD="theirs"))
    assert cloud.secret("cotenant-redis") == {"password": "theirs"}


def test_a_key_without_a_value_is_filled(cloud: Cloud) -> None:
    ran(cloud.run())
    kept = cloud.memory / "things" / "secret_cotenant-secrets"
    kept.write_text(re.sub(r'("COTENANT_API_KEYS": ")[^"]*', r"\1", kept.read_text()))
    ran(cloud.run("--only", "namespace"))
    assert cloud.secret() == {**SECRETS, "COTENANT_UPSTREAM_KEY": "very-secret"}


def test_a_file_of_secrets_that_can_not_be_read_or_has_quotes_is_refused_and_line_ends_of_windows_are_no_values(
    cloud: Cloud,
) -> None:
    none = dict.fromkeys(SECRETS, "")
    refused = cloud.run(SECRETS_FILE=str(cloud.folder / "nowhere"), **none)
    assert refused.returncode == 1
    assert f"SECRETS_FILE={cloud.folder}/nowhere can't be read" in refused.stderr
    assert cloud.changes == []
    file = cloud.folder / "secrets"
    file.write_text('COTENANT_API_KEYS="acme:k1"\n')
    refused = cloud.run(SECRETS_FILE=str(file), **none)
    assert refused.returncode == 1
    assert f"COTENANT_API_KEYS in {file} begins with a quote" in refused.stderr
    assert "k1" not in refused.stdout + refused.stderr
    assert not [name for name in cloud.there() if name.startswith("secret_")]
    file.write_bytes(b"COTENANT_API_KEYS=acme:k1\r\n")
    ran(cloud.run(SECRETS_FILE=str(file), **none))
    assert cloud.secret() == {"COTENANT_API_KEYS": "acme:k1", "COTENANT_UPSTREAM_KEY": "k1"}
