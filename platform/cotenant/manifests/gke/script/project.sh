# --- steps: project, network, registry, buckets, queue --------------------------------------------------------------

do_apis() {
  local -a missing=()
  local api enabled
  enabled="$(gcloud services list --enabled --project="$PROJECT" --format='value(config.name)')"
  for api in "${APIS[@]}"; do
    grep -qxF "$api" <<<"$enabled" || missing+=("$api")
  done
  if ((${#missing[@]})); then
    run gcloud services enable "${missing[@]}" --project="$PROJECT"
  else
    have "every service"
  fi
}

do_network() {
  if look gcloud compute networks describe "$NETWORK" --project="$PROJECT" --format='value(name)'; then
    have "network $NETWORK"
  else
    run gcloud compute networks create "$NETWORK" --project="$PROJECT" --subnet-mode=custom
  fi
  if look gcloud compute networks subnets describe "$SUBNETWORK" --project="$PROJECT" --region="$REGION" \
    --format='value(name)'; then
    have "subnetwork $SUBNETWORK"
  else
    run gcloud compute networks subnets create "$SUBNETWORK" --project="$PROJECT" --region="$REGION" \
      --network="$NETWORK" --range="$SUBNET_RANGE" \
      --secondary-range="pods=$PODS_RANGE,services=$SERVICES_RANGE" --enable-private-ip-google-access
  fi
  if look gcloud compute routers describe "$CLUSTER" --project="$PROJECT" --region="$REGION" --format='value(name)'; then
    have "router $CLUSTER"
  else
    run gcloud compute routers create "$CLUSTER" --project="$PROJECT" --region="$REGION" --network="$NETWORK"
  fi
  if look gcloud compute routers nats describe "$CLUSTER" --router="$CLUSTER" --project="$PROJECT" \
    --region="$REGION" --format='value(name)'; then
    have "NAT $CLUSTER"
  else
    run gcloud compute routers nats create "$CLUSTER" --router="$CLUSTER" --project="$PROJECT" --region="$REGION" \
      --nat-all-subnet-ip-ranges --auto-allocate-nat-external-ips
  fi
}

account() {
  if look gcloud iam service-accounts describe "$1@$PROJECT.iam.gserviceaccount.com" --project="$PROJECT" \
    --format='value(email)'; then
    have "account $1"
  else
    run gcloud iam service-accounts create "$1" --project="$PROJECT" --display-name="$2"
  fi
}

do_accounts() {
  local role
  account "$NODE_ACCOUNT" "Nodes of cluster $CLUSTER"
  account "$ACCOUNT" "$PLATFORM, environment $ENVIRONMENT"
  for role in "${NODE_ROLES[@]}"; do
    grant "$role" "serviceAccount:$NODE_EMAIL" projects "$PROJECT"
  done
}

do_registry() {
  local repository
  if look gcloud artifacts repositories describe "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
    --format='value(name)'; then
    have "repository $REPOSITORY"
  else
    run gcloud artifacts repositories create "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
      --repository-format=docker --allow-vulnerability-scanning --description="Images of $PLATFORM"
  fi
  if look gcloud artifacts repositories describe "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
    --format='value(cleanupPolicies)' && [[ -n "$answer" ]]; then
    have "cleanup of $REPOSITORY"
  else
    run gcloud artifacts repositories set-cleanup-policies "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
      --policy="$HERE/cleanup-policy.json" --no-dry-run
  fi
  if look gcloud artifacts repositories describe "$MIRROR" --project="$PROJECT" --location="$REGION" \
    --format='value(name)'; then
    have "repository $MIRROR"
  else
    run gcloud artifacts repositories create "$MIRROR" --project="$PROJECT" --location="$REGION" \
      --repository-format=docker --mode=remote-repository --remote-docker-repo=DOCKER-HUB \
      --description="Docker Hub, for $PLATFORM"
  fi
  for repository in "$REPOSITORY" "$MIRROR"; do
    grant roles/artifactregistry.reader "serviceAccount:$NODE_EMAIL" "artifacts repositories" "$repository" \
      --project="$PROJECT" --location="$REGION"
  done
}

# bucket NAME USE [FLAG...]: it is there, in our region.
bucket() {
  local name=$1 use=$2
  shift 2
  if look gcloud storage buckets describe "gs://$name" --format='value(location)'; then
    if [[ "${answer,,}" == "$REGION" ]]; then
      have "bucket gs://$name ($use)"
    elif [[ "$use" == results ]]; then
      die "bucket gs://$name is in ${answer,,} and the cluster in $REGION, so each result would cross regions; name \
another one in jobs.store, or move it"
    else
      warn "bucket gs://$name ($use) is in ${answer,,}: every start of a model reads it from there, not from $REGION"
    fi
  else
    run gcloud storage buckets create "gs://$name" --project="$PROJECT" --location="$REGION" \
      --uniform-bucket-level-access --public-access-prevention "$@"
  fi
}

do_buckets() {
  local name
  if [[ -n "$RESULTS_BUCKET" ]]; then
    bucket "$RESULTS_BUCKET" results
  fi
  for name in "${WEIGHTS[@]}"; do
    bucket "$name" weights
    grant roles/storage.objectViewer "serviceAccount:$EMAIL" "storage buckets" "gs://$name"
  done
  if $BAKED; then
    bucket "$SCRATCH_BUCKET" "scratch, a week" --lifecycle-file="$HERE/scratch-lifecycle.json"
    grant roles/storage.objectCreator "serviceAccount:$NODE_EMAIL" "storage buckets" "gs://$SCRATCH_BUCKET"
    grant roles/storage.objectViewer "serviceAccount:$NODE_EMAIL" "storage buckets" "gs://$SCRATCH_BUCKET"
  fi
}

# each_grant MEMBER LINE...: lines "kind name role".
each_grant() {
  local member=$1 kind name role line
  shift
  for line in "$@"; do
    read -r kind name role <<<"$line"
    case "$kind" in
      topic) grant "$role" "$member" "pubsub topics" "$name" --project="$JOBS_PROJECT" ;;
      subscription) grant "$role" "$member" "pubsub subscriptions" "$name" --project="$JOBS_PROJECT" ;;
      bucket) grant "$role" "$member" "storage buckets" "gs://$name" ;;
      *) die "no rights on a $kind are known" ;;
    esac
  done
}

# labels_of KIND NAME: platform and environment that a topic or subscription is labelled with, in `answer`.
labels_of() {
  look gcloud pubsub "$1" describe "$2" --project="$JOBS_PROJECT" \
    --format='value[separator=" "](labels.platform,labels.environment)'
}

do_queue() {
  local number=PROJECT_NUMBER name
  for name in "${SUBSCRIPTIONS[@]}"; do
    if labels_of subscriptions "$name" && [[ -n "${answer// /}" && "$answer" != "$PLATFORM $ENVIRONMENT" ]]; then
      die "subscription $name in project $JOBS_PROJECT is that of $answer: two environments would take each other's \
jobs; give this one names of its own (jobs: topic, subscription, results, dead_letter)"
    fi
  done
  if ! ((${#SUBSCRIPTIONS[@]})); then
    say "  no ingress serves jobs here"
    each_grant "serviceAccount:$EMAIL" "${GRANTS[@]}"
    return
  fi
  need "$COTENANT"
  [[ -e "$PLATFORM_FILE" ]] || die "no platform file $PLATFORM_FILE here; name it in PLATFORM_FILE"
  local -a setup=("$COTENANT" jobs setup --file "$PLATFORM_FILE" --env "$ENVIRONMENT")
  if "${setup[@]}" --check >"$scratch/jobs" 2>&1; then
    have "every topic and subscription"
  else
    # What it lacks then is the rights that follow here, or it says why.
    run "${setup[@]}" || say "  rights are given now"
  fi
  if look gcloud projects describe "$JOBS_PROJECT" --format='value(projectNumber)'; then
    number=$answer
  fi
  each_grant "serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com" "${AGENT_GRANTS[@]}"
  each_grant "serviceAccount:$EMAIL" "${GRANTS[@]}"
  $dry || "${setup[@]}" --check >"$scratch/jobs" 2>&1 || die "topics and subscriptions are not as they should be:
$(<"$scratch/jobs")"
}
