# --- steps: images and node pools -----------------------------------------------------------------------------------

do_images() {
  local image
  local -a missing=()
  for image in "${IMAGES[@]}"; do
    if look gcloud artifacts docker images describe "$image" --project="$PROJECT" --format='value(image_summary.digest)'; then
      have "$image"
    else
      missing+=("$image")
    fi
  done
  ((${#missing[@]})) || return 0
  if $dry || [[ "$only" == images ]]; then
    warn "not pushed yet: ${missing[*]}"
    $dry || exit 1
    return
  fi
  die "the next step needs images that are not pushed yet:
$(printf '  %s\n' "${missing[@]}")
build and push them (docs/images.md), then run this again: it goes on here"
}

do_bake() {
  if ! $BAKED; then
    say "  gke.baked is off"
    return
  fi
  if look gcloud compute images describe "$NODE_IMAGE" --project="$PROJECT" --format='value(name)'; then
    have "disk image $NODE_IMAGE"
    return
  fi
  need git go
  local zone="${ZONES[0]:-}" directory="$scratch/builder"
  if [[ -z "$zone" ]]; then
    zone="$(gcloud compute zones list --project="$PROJECT" --filter="region:$REGION AND status=UP" \
      --format='value(name)' --limit=1)"
  fi
  run git init --quiet "$directory"
  run git -C "$directory" fetch --quiet --depth=1 "$BUILDER" "$BUILDER_COMMIT"
  run git -C "$directory" checkout --quiet FETCH_HEAD
  # It starts a machine in our network that pulls the image as the nodes' account, unpacks it on a disk, and ends.
  run go -C "$directory/gke-disk-image-builder" run ./cli \
    --project-name="$PROJECT" --image-name="$NODE_IMAGE" --image-family-name="$REPOSITORY-engines" \
    --image-labels="cotenant_platform=$PLATFORM" --job-name="cotenant-bake-$(date +%s)" --zone="$zone" \
    --gcs-path="gs://$SCRATCH_BUCKET/bake/" --disk-size-gb="$NODE_IMAGE_GB" --timeout=60m \
    --network="$NETWORK" --subnet="$SUBNETWORK" --service-account="$NODE_EMAIL" --storage-location="$REGION" \
    --image-pull-auth=ServiceAccountToken --container-image="$ENGINES_IMAGE"
}

pool_answer() {
  look gcloud container node-pools describe "$1" --cluster="$CLUSTER" --location="$REGION" --project="$PROJECT" \
    --format="$2"
}

wait_for_pool() {
  while pool_answer "$1" 'value(status)' && [[ "$answer" == PROVISIONING || "$answer" == RECONCILING ]]; do
    say "  node pool $1 is $answer"
    sleep "$PAUSE_S"
  done
  [[ "$answer" == RUNNING ]] || die "node pool $1 is ${answer:-not there}: gcloud container node-pools describe $1 \
--cluster=$CLUSTER --location=$REGION --project=$PROJECT"
}

# The definition is sent as it lies in node-pools/, since gcloud has no flag for some of its fields.
create_pool() {
  local url="https://container.googleapis.com/v1/projects/$PROJECT/locations/$REGION/clusters/$CLUSTER/nodePools"
  local file="$HERE/node-pools/$1.json" token
  if $dry; then
    say "  would run: curl --request POST $url --data @$file"
    return
  fi
  say "  + curl --request POST $url --data @$file"
  token="$(gcloud auth print-access-token)"
  curl --silent --show-error --fail-with-body --request POST "$url" --header 'Content-Type: application/json' \
    --header @<(printf 'Authorization: Bearer %s' "$token") --data @"$file" >"$scratch/answer" ||
    die "GKE does not make node pool $1: $(<"$scratch/answer")"
}

delete_pool() {
  run gcloud container node-pools delete "$1" --cluster="$CLUSTER" --location="$REGION" --project="$PROJECT" --quiet
}

# labelled_pools: node pools in our cluster, each with its status and the platform and environment of its labels, one a
# line, in `answer`.
labelled_pools() {
  look gcloud container node-pools list --cluster="$CLUSTER" --location="$REGION" --project="$PROJECT" \
    --format='value(name,status,config.resourceLabels.cotenant_platform,config.resourceLabels.cotenant_environment)'
}

# forgotten: node pools of this environment that are not among ours (any more) and not being deleted, one a line.
forgotten() {
  local named
  named="$(printf '%s\n' "${NODE_POOLS[@]%% *}")"
  labelled_pools || return 0
  awk -v mine="$PLATFORM $ENVIRONMENT" 'NF == 4 && $2 != "STOPPING" && $3 " " $4 == mine {print $1}' <<<"$answer" |
    grep -vxF "$named" || true
}

do_pools() {
  local line name digest least most policy found others
  for line in "${NODE_POOLS[@]}"; do
    read -r name digest least most policy <<<"$line"
    if ! pool_answer "$name" 'value(config.resourceLabels.cotenant_definition)'; then
      create_pool "$name"
      $dry || wait_for_pool "$name"
      continue
    fi
    found=$answer
    $dry || wait_for_pool "$name"
    if [[ "$found" != "$digest" ]]; then
      if $replace; then
        delete_pool "$name"
        create_pool "$name"
        $dry || wait_for_pool "$name"
        continue
      fi
      warn "node pool $name was made of another definition. It goes on as it is; with --replace it is deleted and made \
anew, and its pods wait meanwhile"
    fi
    pool_answer "$name" \
      'value[separator=" "](autoscaling.totalMinNodeCount.yesno(no=0),autoscaling.totalMaxNodeCount)'
    if [[ "$answer" == "$least $most" ]]; then
      have "node pool $name"
    else
      run gcloud container node-pools update "$name" --cluster="$CLUSTER" --location="$REGION" --project="$PROJECT" \
        --enable-autoscaling --total-min-nodes="$least" --total-max-nodes="$most" --location-policy="$policy" --quiet
    fi
  done
  others="$(forgotten)"
  for name in $others; do
    warn "node pool $name is of this environment, but not in the platform file from which this script was written. It \
stays, with what runs on it. Once \`cotenant deploy\` has moved that and is healthy, delete it: gcloud container node-pools \
delete $name --cluster=$CLUSTER --location=$REGION --project=$PROJECT"
  done
}
