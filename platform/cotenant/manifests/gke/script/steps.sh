# --- steps ----------------------------------------------------------------------------------------------------------

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

cluster_status() {
  look gcloud container clusters describe "$CLUSTER" --location="$REGION" --project="$PROJECT" --format='value(status)'
}

do_cluster() {
  local -a more=()
  if [[ -n "$AUTHORIZED_NETWORKS" ]]; then
    more+=(--enable-master-authorized-networks --master-authorized-networks="$AUTHORIZED_NETWORKS")
  else
    # The control plane is reached by its name, which asks IAM; it has no address to reach it by.
    more+=(--no-enable-ip-access)
  fi
  [[ -z "$CLUSTER_VERSION" ]] || more+=(--cluster-version="$CLUSTER_VERSION")
  if cluster_status; then
    have "cluster $CLUSTER"
  else
    # Its first node pool is for what GKE and KubeRay themselves run, without a taint; ours have theirs.
    run gcloud container clusters create "$CLUSTER" --project="$PROJECT" --location="$REGION" \
      --release-channel="$CHANNEL" --network="$NETWORK" --subnetwork="$SUBNETWORK" --enable-ip-alias \
      --cluster-secondary-range-name=pods --services-secondary-range-name=services \
      --enable-private-nodes --enable-dns-access --enable-dataplane-v2 --gateway-api=standard \
      --workload-pool="$PROJECT.svc.id.goog" --workload-metadata=GKE_METADATA \
      --enable-shielded-nodes --shielded-secure-boot --shielded-integrity-monitoring \
      --enable-image-streaming --enable-managed-prometheus --monitoring=SYSTEM,DCGM --logging=SYSTEM,WORKLOAD \
      --enable-cost-allocation --autoscaling-profile=optimize-utilization \
      --service-account="$NODE_EMAIL" --scopes=cloud-platform --image-type=COS_CONTAINERD \
      --machine-type="$SYSTEM_MACHINE" --disk-type=pd-balanced --disk-size=50 --num-nodes=1 \
      --enable-autoscaling --total-min-nodes=1 --total-max-nodes="$SYSTEM_NODES_MAX" --location-policy=ANY \
      --labels="cotenant_platform=$PLATFORM" "${more[@]}"
  fi
  if $dry; then return; fi
  while cluster_status && [[ "$answer" == PROVISIONING || "$answer" == RECONCILING ]]; do
    say "  cluster $CLUSTER is $answer"
    sleep "$PAUSE_S"
  done
  [[ "$answer" == RUNNING ]] || die "cluster $CLUSTER is ${answer:-not there}: gcloud container clusters describe \
$CLUSTER --location=$REGION --project=$PROJECT"
  look gcloud container clusters describe "$CLUSTER" --location="$REGION" --project="$PROJECT" \
    --format='value(currentMasterVersion)'
  printf '%s\n%s\n' "$LEAST_VERSION" "$answer" | sort -V -C ||
    die "cluster $CLUSTER runs $answer and the platform file asks for $LEAST_VERSION; upgrade it (gcloud container \
clusters upgrade $CLUSTER --master --cluster-version=$LEAST_VERSION --location=$REGION --project=$PROJECT), or lower \
gke.version"
}

do_operator() {
  need kubectl helm
  if found_in_cluster deployment kuberay-operator --namespace="$SYSTEM_NAMESPACE" \
    --output='jsonpath={.spec.template.spec.containers[0].image}'; then
    if [[ "$answer" == *":v$KUBERAY" ]]; then
      have "operator $KUBERAY"
      return
    fi
    # Helm never updates definitions of resources.
    run kubectl apply --server-side --force-conflicts \
      --kustomize="https://github.com/ray-project/kuberay/ray-operator/config/crd?ref=v$KUBERAY"
  fi
  # GKE's own add-on for Ray is left off: its KubeRay is an older one.
  run helm upgrade kuberay-operator kuberay-operator --install --version="$KUBERAY" \
    --repo=https://ray-project.github.io/kuberay-helm/ --namespace="$SYSTEM_NAMESPACE" --create-namespace --wait
}

random() { head -c 32 /dev/urandom | base64 | tr -d '\n='; }

# value_of NAME: from the environment, else from the file of secrets; empty if from neither.
value_of() {
  if [[ -n "${!1:-}" ]]; then
    printf '%s' "${!1}"
  elif [[ -n "$SECRETS_FILE" ]]; then
    sed -n "s/^$1=//p" "$SECRETS_FILE" | head -n 1 | tr -d '\n'
  fi
}

# secret NAME KEY=VALUE...: made by way of standard input, so that no list of processes shows a value.
secret() {
  local name=$1 pair
  shift
  if $dry; then
    say "  would run: kubectl create --filename=-   (Secret $name with ${*%%=*})"
    return
  fi
  say "  + kubectl create --filename=-   (Secret $name with ${*%%=*})"
  {
    printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\ndata:\n' "$name" "$NAMESPACE"
    for pair in "$@"; do
      printf '  %s: %s\n' "${pair%%=*}" "$(printf '%s' "${pair#*=}" | base64 | tr -d '\n')"
    done
  } | kubectl create --filename=- >/dev/null
}

do_namespace() {
  local key value
  local -a pairs=()
  need kubectl
  if found_in_cluster namespace "$NAMESPACE" --output=name; then
    have "namespace $NAMESPACE"
  else
    run kubectl create namespace "$NAMESPACE"
  fi
  if found_in_cluster secret "$SECRET" --namespace="$NAMESPACE" --output=name; then
    have "secret $SECRET"
  else
    for key in "${SECRET_KEYS[@]}"; do
      value="$(value_of "$key")"
      if [[ -n "$value" ]]; then
        pairs+=("$key=$value")
      elif [[ "$key" == "$NEEDED_KEY" ]] && ! $dry; then
        die "needs $key (tenant:key, comma-separated) in the environment, or SECRETS_FILE with a line $key=…"
      fi
    done
    if ((${#pairs[@]})); then
      secret "$SECRET" "${pairs[@]}"
    elif [[ -n "$NEEDED_KEY" ]]; then
      secret "$SECRET" "$NEEDED_KEY="
    fi
  fi
  if found_in_cluster secret "$TOKEN_SECRET" --namespace="$NAMESPACE" --output=name; then
    have "secret $TOKEN_SECRET"
  else
    secret "$TOKEN_SECRET" "auth_token=$(random)"
  fi
  if found_in_cluster secret "$REDIS_SECRET" --namespace="$NAMESPACE" --output=name; then
    have "secret $REDIS_SECRET"
  elif $OWN_REDIS; then
    secret "$REDIS_SECRET" "password=$(random)"
  else
    value="$(value_of REDIS_PASSWORD)"
    [[ -n "$value" ]] || $dry || die "needs REDIS_PASSWORD, that of gke.redis, in the environment or in SECRETS_FILE"
    secret "$REDIS_SECRET" "password=$value"
  fi
  grant roles/iam.workloadIdentityUser "serviceAccount:$PROJECT.svc.id.goog[$NAMESPACE/$ACCOUNT]" \
    "iam service-accounts" "$EMAIL" --project="$PROJECT"
}

do_address() {
  if [[ -z "$DOMAIN" ]]; then
    say "  no gke.domain: the HTTP door is reached from inside the cluster only"
    return
  fi
  if look gcloud compute addresses describe "$ADDRESS" --global --project="$PROJECT" --format='value(address)'; then
    have "address $ADDRESS"
  else
    run gcloud compute addresses create "$ADDRESS" --global --project="$PROJECT"
  fi
  if look gcloud certificate-manager dns-authorizations describe "$CERTIFICATE" --project="$PROJECT" \
    --format='value(name)'; then
    have "proof of the domain $DOMAIN"
  else
    run gcloud certificate-manager dns-authorizations create "$CERTIFICATE" --project="$PROJECT" --domain="$DOMAIN"
  fi
  if look gcloud certificate-manager certificates describe "$CERTIFICATE" --project="$PROJECT" --format='value(name)'; then
    have "certificate $CERTIFICATE"
  else
    run gcloud certificate-manager certificates create "$CERTIFICATE" --project="$PROJECT" --domains="$DOMAIN" \
      --dns-authorizations="$CERTIFICATE"
  fi
  if look gcloud certificate-manager maps describe "$CERTIFICATE" --project="$PROJECT" --format='value(name)'; then
    have "certificate map $CERTIFICATE"
  else
    run gcloud certificate-manager maps create "$CERTIFICATE" --project="$PROJECT"
  fi
  if look gcloud certificate-manager maps entries describe "$CERTIFICATE" --map="$CERTIFICATE" --project="$PROJECT" \
    --format='value(name)'; then
    have "entry of $DOMAIN"
  else
    run gcloud certificate-manager maps entries create "$CERTIFICATE" --map="$CERTIFICATE" --project="$PROJECT" \
      --hostname="$DOMAIN" --certificates="$CERTIFICATE"
  fi
  $dry || dns_records
}

dns_records() {
  say "  Where $DOMAIN is kept there must be:"
  look gcloud compute addresses describe "$ADDRESS" --global --project="$PROJECT" --format='value(address)'
  say "    $DOMAIN. A $answer"
  look gcloud certificate-manager dns-authorizations describe "$CERTIFICATE" --project="$PROJECT" \
    --format='value(dnsResourceRecord.name,dnsResourceRecord.type,dnsResourceRecord.data)'
  say "    ${answer//$'\t'/ }"
}

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
build and push them (docs/gke.md, Images), then run this again: it goes on here"
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

do_pools() {
  local line name digest least most policy found
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
}
