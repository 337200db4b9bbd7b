"""The script that deploys the service: each step only what is not there yet, so that it can be run again. Pure."""

from __future__ import annotations

from cotenant.manifests.cloudrun.service import Names
from cotenant.manifests.files import header

_SCRIPT = """#!/usr/bin/env bash
{header}# Deploys {service} to Cloud Run: ./deploy.sh [--dry-run | --destroy]
# What is there already is left as it is. Needs gcloud, and quota for {accelerator} on Cloud Run in {region}.
set -euo pipefail
cd "$(dirname "$0")"
readonly PROJECT={project} REGION={region} SERVICE={service} SECRET={secret}
readonly RUNS_AS={account_email} CALLS={caller_email}

mode=${{1:-apply}}
case "$mode" in apply | --dry-run | --destroy) ;; *) echo "usage: $0 [--dry-run | --destroy]" >&2; exit 2 ;; esac

run() {{
  if [ "$mode" = --dry-run ]; then printf '%q ' "$@"; echo; else "$@"; fi
}}
# Whether something is there; a dry run asks nobody and shows every step.
there() {{
  [ "$mode" != --dry-run ] && "$@" > /dev/null 2>&1
}}

if [ "$mode" = --destroy ]; then
  there gcloud run services describe "$SERVICE" --project "$PROJECT" --region "$REGION" &&
    gcloud run services delete "$SERVICE" --project "$PROJECT" --region "$REGION" --quiet
  there gcloud secrets describe "$SECRET" --project "$PROJECT" &&
    gcloud secrets delete "$SECRET" --project "$PROJECT" --quiet
  there gcloud iam service-accounts describe "$RUNS_AS" --project "$PROJECT" &&
    gcloud iam service-accounts delete "$RUNS_AS" --project "$PROJECT" --quiet
  echo "gone: $SERVICE, $SECRET, $RUNS_AS"
  exit 0
fi

run gcloud services enable run.googleapis.com secretmanager.googleapis.com iam.googleapis.com --project "$PROJECT"

there gcloud iam service-accounts describe "$RUNS_AS" --project "$PROJECT" ||
  run gcloud iam service-accounts create {account} --project "$PROJECT" --display-name "$SERVICE on Cloud Run"

# The key that the cluster shows; made here once, and kept in Secret Manager only.
if ! there gcloud secrets describe "$SECRET" --project "$PROJECT"; then
  run gcloud secrets create "$SECRET" --project "$PROJECT" --replication-policy user-managed --locations "$REGION"
  if [ "$mode" = apply ]; then
    printf '%s:sk-%s' {tenant} "$(openssl rand -hex 24)" |
      gcloud secrets versions add "$SECRET" --project "$PROJECT" --data-file -
  else
    echo "# a new key as the first version of $SECRET"
  fi
fi
run gcloud secrets add-iam-policy-binding "$SECRET" --project "$PROJECT" \\
  --member "serviceAccount:$RUNS_AS" --role roles/secretmanager.secretAccessor
{bucket}
run gcloud run services replace service.yaml --project "$PROJECT" --region "$REGION"

# Only the cluster's service account may call it; nothing is granted to allUsers.
run gcloud run services add-iam-policy-binding "$SERVICE" --project "$PROJECT" --region "$REGION" \\
  --member "serviceAccount:$CALLS" --role roles/run.invoker

if [ "$mode" = apply ]; then
  url=$(gcloud run services describe "$SERVICE" --project "$PROJECT" --region "$REGION" --format 'value(status.url)')
  cat << END
$SERVICE is at $url
In the platform file, to send what the cluster can't take soon there:
  {workload}:
    spill: {{url: "$url", auth: google, key_env: COTENANT_SPILL_KEY{model}}}
and in the cluster's Secret, as COTENANT_SPILL_KEY, what comes after the colon of
  gcloud secrets versions access latest --secret $SECRET --project $PROJECT
END
fi
"""

_BUCKET = """
run gcloud storage buckets add-iam-policy-binding gs://{bucket} --project "$PROJECT" \\
  --member "serviceAccount:$RUNS_AS" --role roles/storage.objectViewer
"""


def deploy_script(names: Names, bucket: str | None, accelerator: str, command: str) -> str:
    """The text of `deploy.sh`."""
    site = names.site
    return _SCRIPT.format(
        header=header(command),
        service=names.service,
        accelerator=accelerator,
        region=site.gke.region,
        project=site.gke.project,
        secret=names.keys_secret,
        account=names.account,
        account_email=names.account_email,
        caller_email=site.service_account_email,
        tenant=site.name,
        bucket=_BUCKET.format(bucket=bucket) if bucket else "",
        workload=names.workload,
        model=f", model: {names.workload}" if bucket else "",
    )
