# --- what follows is the same for every environment ---------------------------------------------------------------

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  printf 'setup.sh: needs bash 4.4 or later and has %s; on macOS: brew install bash\n' "$BASH_VERSION" >&2
  exit 2
fi

HERE="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE
#: What may be set from outside.
readonly COTENANT="${COTENANT:-cotenant}"
readonly PLATFORM_FILE="${PLATFORM_FILE:-$DEFAULT_PLATFORM_FILE}"
readonly NETWORK="${NETWORK:-$CLUSTER}" SUBNETWORK="${SUBNETWORK:-$CLUSTER}"
readonly SUBNET_RANGE="${SUBNET_RANGE:-10.0.0.0/20}"
readonly PODS_RANGE="${PODS_RANGE:-10.4.0.0/14}" SERVICES_RANGE="${SERVICES_RANGE:-10.8.0.0/20}"
readonly CHANNEL="${CHANNEL:-regular}" CLUSTER_VERSION="${CLUSTER_VERSION:-}"
readonly AUTHORIZED_NETWORKS="${AUTHORIZED_NETWORKS:-}"
readonly SECRETS_FILE="${SECRETS_FILE:-}"
readonly PAUSE_S="${PAUSE_S:-10}"

readonly SYSTEM_NAMESPACE=kuberay-system KUBERAY=1.7.0
readonly BUILDER=https://github.com/ai-on-gke/tools
readonly BUILDER_COMMIT="${BUILDER_COMMIT:-b41826fcdb64cb50da1128eaab905629d083e0f4}"

readonly STEPS=(apis network accounts registry buckets queue cluster operator namespace address images bake pools)
declare -rA ABOUT=(
  [apis]="Google Cloud's services"
  [network]="network, and a way out for nodes without a public address"
  [accounts]="accounts of the nodes and of the environment"
  [registry]="Artifact Registry in $REGION: our images, and a mirror of Docker Hub"
  [buckets]="buckets in $REGION"
  [queue]="topics, subscriptions and the rights on them"
  [cluster]="cluster $CLUSTER in $REGION"
  [operator]="KubeRay $KUBERAY"
  [namespace]="namespace $NAMESPACE, its secrets, and who its pods are"
  [address]="address and certificate"
  [images]="images of version in $REPOSITORY"
  [bake]="disk image with the engines' image in it"
  [pools]="node pools"
)

usage() {
  cat <<END
Sets up environment $ENVIRONMENT of $PLATFORM in project $PROJECT, region $REGION. What is there is left alone, so it
may be run again at any time; one that was stopped goes on where it was.

  ./setup.sh                set up
  ./setup.sh --dry-run      say what would be run, and run nothing that changes anything
  ./setup.sh --only STEP    one step: ${STEPS[*]}
  ./setup.sh --replace      delete node pools whose definition has changed, and make them anew
  ./setup.sh --destroy      delete the environment; asks for the cluster's name, unless with --yes
      --shared              ... and what environments share: cluster, network, registry, images, the nodes' account
      --delete-data         ... and the bucket of results

Variables: PLATFORM_FILE, COTENANT (the command), NETWORK, SUBNETWORK, SUBNET_RANGE, PODS_RANGE, SERVICES_RANGE,
CHANNEL (of releases), CLUSTER_VERSION, AUTHORIZED_NETWORKS (also open the control plane's address, to these), and for
the secrets ${SECRET_KEYS[*]} or SECRETS_FILE (lines NAME=value).
END
}

dry=false yes=false destroy=false shared=false delete_data=false replace=false only="" current="" answer=""
connected=false scratch=""

say() { printf '%s\n' "$*"; }
have() { say "  = $* is there"; }
warn() { printf '  ! %s\n' "$*" >&2; }
die() {
  printf 'setup.sh: %s\n' "$*" >&2
  exit 1
}

# run COMMAND...: what changes something. A dry run only says it.
run() {
  if $dry; then
    printf '  would run:'
  else
    printf '  +'
  fi
  printf ' %q' "$@"
  printf '\n'
  $dry || "$@"
}

# look COMMAND...: whether it finds something; what it prints is in `answer`. What is neither found nor missing ends it.
look() {
  answer=""
  if answer="$("$@" 2>"$scratch/error")"; then
    return 0
  fi
  local trouble
  trouble="$(<"$scratch/error")"
  case "$trouble" in
    *NOT_FOUND* | *"not found"* | *NotFound* | *"does not exist"* | *code=404* | *"404"*) return 1 ;;
    *SERVICE_DISABLED* | *"has not been used in project"*) return 1 ;;
  esac
  die "could not look with: $*
$trouble"
}

need() {
  local command
  for command in "$@"; do
    if command -v "$command" >/dev/null; then continue; fi
    $dry || die "needs $command, which is not installed here"
    warn "needs $command, which is not installed here"
  done
}

# grant ROLE MEMBER NOUN TARGET [FLAG...]: the member has the role there; NOUN as gcloud calls the kind of target.
grant() {
  local role=$1 member=$2 target=$4 tries
  local -a noun condition=()
  read -ra noun <<<"$3"
  shift 4
  [[ "${noun[0]}" != projects ]] || condition=(--condition=None)
  if look gcloud "${noun[@]}" get-iam-policy "$target" "$@" --flatten='bindings[].members' \
    --format='value(bindings.role,bindings.members)' && grep -qxF "$role"$'\t'"$member" <<<"$answer"; then
    have "$role of $member on $target"
    return
  fi
  for tries in 1 2 3 4 5 6; do
    if run gcloud "${noun[@]}" add-iam-policy-binding "$target" "$@" --member="$member" --role="$role" \
      "${condition[@]}" --format=none; then
      return
    fi
    # An account that was made a moment ago is not known everywhere yet.
    ((tries < 6)) || die "could not give $role to $member on $target"
    sleep "$PAUSE_S"
  done
}

# revoke ROLE MEMBER NOUN TARGET [FLAG...]
revoke() {
  local role=$1 member=$2 target=$4
  local -a noun condition=()
  read -ra noun <<<"$3"
  shift 4
  [[ "${noun[0]}" != projects ]] || condition=(--condition=None)
  if look gcloud "${noun[@]}" get-iam-policy "$target" "$@" --flatten='bindings[].members' \
    --format='value(bindings.role,bindings.members)' && grep -qxF "$role"$'\t'"$member" <<<"$answer"; then
    run gcloud "${noun[@]}" remove-iam-policy-binding "$target" "$@" --member="$member" --role="$role" \
      "${condition[@]}" --format=none
  fi
}

# connect: kubectl and helm speak to our cluster, by a file of our own; false if there is no cluster yet.
connect() {
  if $connected; then return 0; fi
  look gcloud container clusters describe "$CLUSTER" --location="$REGION" --project="$PROJECT" --format='value(name)' ||
    return 1
  export KUBECONFIG="$scratch/kubeconfig"
  gcloud container clusters get-credentials "$CLUSTER" --location="$REGION" --project="$PROJECT" --dns-endpoint \
    2>"$scratch/error" ||
    gcloud container clusters get-credentials "$CLUSTER" --location="$REGION" --project="$PROJECT" \
      2>"$scratch/error" || die "no way into cluster $CLUSTER: $(<"$scratch/error")"
  connected=true
}

# found_in_cluster ARGUMENT...: whether `kubectl get` finds it; false too where there is no cluster yet.
found_in_cluster() { connect && look kubectl get "$@"; }

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

# Pools of other environments in our cluster, one a line.
strangers() {
  look gcloud container node-pools list --cluster="$CLUSTER" --location="$REGION" --project="$PROJECT" \
    --format='value(name,config.resourceLabels.cotenant_environment)' || return 0
  awk -v mine="$ENVIRONMENT" 'NF > 1 && $2 != mine {print $1}' <<<"$answer"
}

destroy_environment() {
  local name line index
  say "environment: what runs in the cluster"
  if connect; then
    gone "namespace $NAMESPACE" kubectl get namespace "$NAMESPACE" --output=name -- \
      kubectl delete namespace "$NAMESPACE" --wait=true --timeout=15m
    run kubectl delete priorityclasses.scheduling.k8s.io,computeclasses.cloud.google.com --ignore-not-found \
      --selector="app.kubernetes.io/part-of=$PLATFORM,cotenant-environment=$ENVIRONMENT"
    say "environment: node pools"
    for ((index = ${#NODE_POOLS[@]} - 1; index >= 0; index--)); do
      name="${NODE_POOLS[index]%% *}"
      if pool_answer "$name" 'value(name)'; then delete_pool "$name"; else say "  - node pool $name is not there"; fi
    done
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

# --- which of it ----------------------------------------------------------------------------------------------------

known_step() {
  local step
  for step in "${STEPS[@]}"; do
    [[ "$step" != "$1" ]] || return 0
  done
  return 1
}

leave() {
  local status=$?
  [[ -z "$scratch" ]] || rm -rf "$scratch"
  if ((status)) && [[ -n "$current" ]]; then
    printf 'setup.sh: stopped in step %s; run it again to go on there\n' "$current" >&2
  fi
}

set_up() {
  local step number=0
  for step in "${STEPS[@]}"; do
    number=$((number + 1))
    if [[ -n "$only" && "$only" != "$step" ]]; then continue; fi
    current=$step
    say "[$number/${#STEPS[@]}] $step: ${ABOUT[$step]}"
    "do_$step"
  done
  current=""
  if $dry; then
    say "Nothing was changed."
  else
    say "Done. To reach the cluster: gcloud container clusters get-credentials $CLUSTER --location=$REGION \
--project=$PROJECT --dns-endpoint"
  fi
}

main() {
  while (($#)); do
    case "$1" in
      --dry-run) dry=true ;;
      --yes) yes=true ;;
      --destroy) destroy=true ;;
      --shared) shared=true ;;
      --delete-data) delete_data=true ;;
      --replace) replace=true ;;
      --only)
        shift
        only="${1:-}"
        known_step "$only" || die "--only takes one of ${STEPS[*]}"
        ;;
      --help | -h)
        usage
        return
        ;;
      *) die "$1 is none of its options; --help tells them" ;;
    esac
    shift
  done
  if ($shared || $delete_data) && ! $destroy; then die "--shared and --delete-data go with --destroy"; fi
  if $destroy && { [[ -n "$only" ]] || $replace; }; then die "--destroy goes without --only and --replace"; fi
  need gcloud curl
  # gcloud must not stop to ask.
  export CLOUDSDK_CORE_DISABLE_PROMPTS=1
  scratch="$(mktemp -d)"
  trap leave EXIT
  if $destroy; then
    confirm
    current="destroy"
    destroy_environment
    ! $shared || destroy_shared
    current=""
  else
    set_up
  fi
}

main "$@"
