# --- deleting -------------------------------------------------------------------------------------------------------

# gone WHAT LOOK-UP... -- COMMAND...: run the command if the look-up finds something.
gone() {
  local what=$1
  local -a find=()
  shift
  while [[ "$1" != -- ]]; do
    find+=("$1")
    shift
  done
  shift
  if look "${find[@]}"; then
    run "$@"
  else
    say "  - $what is not there"
  fi
}

# ours KIND NAME: whether a topic or subscription carries our labels.
ours() { labels_of "$1" "$2" && [[ "$answer" == "$PLATFORM $ENVIRONMENT" ]]; }

confirm() {
  local typed
  if $dry || $yes; then return; fi
  say "This deletes environment $ENVIRONMENT of $PLATFORM (namespace $NAMESPACE, node pools, topics, subscriptions)."
  ! $shared || say "And what environments share: cluster $CLUSTER, network, registry with its images, disk images."
  ! $delete_data || say "And the bucket gs://$RESULTS_BUCKET with every result."
  read -r -p "The cluster's name, to go on: " typed || typed=""
  [[ "$typed" == "$CLUSTER" ]] || die "that is not $CLUSTER: nothing was deleted"
}

# Pools of other environments, or other platforms, in our cluster, one a line.
strangers() {
  labelled_pools || return 0
  awk -v mine="$PLATFORM $ENVIRONMENT" 'NF == 4 && $3 " " $4 != mine {print $1}' <<<"$answer"
}

# ray_left: what of Ray is in the namespace, one a line, in `answer`.
ray_left() {
  look kubectl get rayservices.ray.io,rayclusters.ray.io --namespace="$NAMESPACE" --output=name && [[ -n "$answer" ]]
}

# Ray goes before its namespace: pods may finish what they do, and then KubeRay has a Job clear a cluster's state out of
# Redis, which can't be made in a namespace that is being deleted.
end_ray() {
  local since=$SECONDS said=$SECONDS
  if ! ray_left; then
    say "  - no Ray is there"
    return
  fi
  run kubectl delete rayservices.ray.io --all --namespace="$NAMESPACE" --wait=false
  if $dry; then return; fi
  say "  pods finish what they do, for $RAY_END_S s at the most"
  while ray_left; do
    ((SECONDS - since < RAY_END_S)) || die "after $RAY_END_S s there still is ${answer//$'\n'/, }. See why: kubectl \
describe ${answer%%$'\n'*} --namespace=$NAMESPACE (the operator in $SYSTEM_NAMESPACE must run, since it is who ends \
them). Then run this again: it goes on here"
    if ((SECONDS - said >= 60)); then
      said=$SECONDS
      say "  ${answer//$'\n'/, }: still there after $(((SECONDS - since) / 60)) min"
    fi
    sleep "$PAUSE_S"
  done
}

destroy_environment() {
  local name line index others
  say "environment: what runs in the cluster"
  if connect; then
    end_ray
    gone "namespace $NAMESPACE" kubectl get namespace "$NAMESPACE" --output=name -- \
      kubectl delete namespace "$NAMESPACE" --wait=true --timeout=15m
    run kubectl delete priorityclasses.scheduling.k8s.io,computeclasses.cloud.google.com --ignore-not-found \
      --selector="app.kubernetes.io/part-of=$PLATFORM,cotenant-environment=$ENVIRONMENT"
    say "environment: node pools"
    for ((index = ${#NODE_POOLS[@]} - 1; index >= 0; index--)); do
      name="${NODE_POOLS[index]%% *}"
      if pool_answer "$name" 'value(name)'; then delete_pool "$name"; else say "  - node pool $name is not there"; fi
    done
    others="$(forgotten)"
    for name in $others; do delete_pool "$name"; done
  else
    say "  - cluster $CLUSTER is not there"
  fi
  if [[ -n "$DOMAIN" ]]; then
    say "environment: address and certificate"
    gone "entry of $DOMAIN" gcloud certificate-manager maps entries describe "$CERTIFICATE" --map="$CERTIFICATE" \
      --project="$PROJECT" -- gcloud certificate-manager maps entries delete "$CERTIFICATE" --map="$CERTIFICATE" \
      --project="$PROJECT" --quiet
    gone "certificate map" gcloud certificate-manager maps describe "$CERTIFICATE" --project="$PROJECT" -- \
      gcloud certificate-manager maps delete "$CERTIFICATE" --project="$PROJECT" --quiet
    gone "certificate" gcloud certificate-manager certificates describe "$CERTIFICATE" --project="$PROJECT" -- \
      gcloud certificate-manager certificates delete "$CERTIFICATE" --project="$PROJECT" --quiet
    gone "proof of the domain" gcloud certificate-manager dns-authorizations describe "$CERTIFICATE" \
      --project="$PROJECT" -- gcloud certificate-manager dns-authorizations delete "$CERTIFICATE" \
      --project="$PROJECT" --quiet
    gone "address" gcloud compute addresses describe "$ADDRESS" --global --project="$PROJECT" -- \
      gcloud compute addresses delete "$ADDRESS" --global --project="$PROJECT" --quiet
  fi
  say "environment: topics and subscriptions"
  for name in "${SUBSCRIPTIONS[@]}"; do
    if ours subscriptions "$name"; then
      run gcloud pubsub subscriptions delete "$name" --project="$JOBS_PROJECT"
    else
      say "  - subscription $name is not there, or not ours"
    fi
  done
  for name in "${TOPICS[@]}"; do
    if ours topics "$name"; then
      run gcloud pubsub topics delete "$name" --project="$JOBS_PROJECT"
    else
      say "  - topic $name is not there, or not ours"
    fi
  done
  say "environment: buckets and account"
  for name in "${WEIGHTS[@]}"; do
    revoke roles/storage.objectViewer "serviceAccount:$EMAIL" "storage buckets" "gs://$name"
  done
  for line in "${GRANTS[@]}"; do
    [[ "$line" == bucket\ * ]] || continue
    read -r _ name line <<<"$line"
    revoke "$line" "serviceAccount:$EMAIL" "storage buckets" "gs://$name"
  done
  if $delete_data && [[ -n "$RESULTS_BUCKET" ]]; then
    gone "bucket gs://$RESULTS_BUCKET" gcloud storage buckets describe "gs://$RESULTS_BUCKET" -- \
      gcloud storage rm --recursive "gs://$RESULTS_BUCKET"
  elif [[ -n "$RESULTS_BUCKET" ]]; then
    say "  gs://$RESULTS_BUCKET is kept (--delete-data deletes it)"
  fi
  gone "account $ACCOUNT" gcloud iam service-accounts describe "$EMAIL" --project="$PROJECT" -- \
    gcloud iam service-accounts delete "$EMAIL" --project="$PROJECT" --quiet
}

destroy_shared() {
  local others role repository image
  say "shared: cluster"
  others="$(strangers)"
  [[ -z "$others" ]] || die "cluster $CLUSTER still has node pools of other environments: ${others//$'\n'/, }. Delete \
those environments first; this one is gone"
  gone "cluster $CLUSTER" gcloud container clusters describe "$CLUSTER" --location="$REGION" --project="$PROJECT" -- \
    gcloud container clusters delete "$CLUSTER" --location="$REGION" --project="$PROJECT" --quiet
  say "shared: disk images"
  if look gcloud compute images list --project="$PROJECT" --filter="family=$REPOSITORY-engines" --no-standard-images \
    --format='value(name)'; then
    for image in $answer; do
      run gcloud compute images delete "$image" --project="$PROJECT" --quiet
    done
  fi
  gone "bucket gs://$SCRATCH_BUCKET" gcloud storage buckets describe "gs://$SCRATCH_BUCKET" -- \
    gcloud storage rm --recursive "gs://$SCRATCH_BUCKET"
  say "shared: registry"
  for repository in "$MIRROR" "$REPOSITORY"; do
    gone "repository $repository" gcloud artifacts repositories describe "$repository" --project="$PROJECT" \
      --location="$REGION" -- gcloud artifacts repositories delete "$repository" --project="$PROJECT" \
      --location="$REGION" --quiet
  done
  say "shared: account of the nodes"
  for role in "${NODE_ROLES[@]}"; do
    revoke "$role" "serviceAccount:$NODE_EMAIL" projects "$PROJECT"
  done
  gone "account $NODE_ACCOUNT" gcloud iam service-accounts describe "$NODE_EMAIL" --project="$PROJECT" -- \
    gcloud iam service-accounts delete "$NODE_EMAIL" --project="$PROJECT" --quiet
  say "shared: network"
  gone "NAT $CLUSTER" gcloud compute routers nats describe "$CLUSTER" --router="$CLUSTER" --project="$PROJECT" \
    --region="$REGION" -- gcloud compute routers nats delete "$CLUSTER" --router="$CLUSTER" --project="$PROJECT" \
    --region="$REGION" --quiet
  gone "router $CLUSTER" gcloud compute routers describe "$CLUSTER" --project="$PROJECT" --region="$REGION" -- \
    gcloud compute routers delete "$CLUSTER" --project="$PROJECT" --region="$REGION" --quiet
  if [[ "$NETWORK" == "$CLUSTER" ]]; then
    gone "subnetwork $SUBNETWORK" gcloud compute networks subnets describe "$SUBNETWORK" --project="$PROJECT" \
      --region="$REGION" -- gcloud compute networks subnets delete "$SUBNETWORK" --project="$PROJECT" \
      --region="$REGION" --quiet
    gone "network $NETWORK" gcloud compute networks describe "$NETWORK" --project="$PROJECT" -- \
      gcloud compute networks delete "$NETWORK" --project="$PROJECT" --quiet
  else
    say "  network $NETWORK was not made here and is kept"
  fi
  say "Services stay enabled: others may use them."
}
