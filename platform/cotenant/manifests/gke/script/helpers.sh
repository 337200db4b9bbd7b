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
#: How long pods may take to end: the longest call, and what Kubernetes and KubeRay take besides.
readonly RAY_END_S="${RAY_END_S:-$DRAIN_S}"

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

Keys that a Secret lacks are added to it; those that it has are kept. To change a value, take it out, add the new one,
and start anew what reads it:
  kubectl patch secret $SECRET --namespace=$NAMESPACE --type=json --patch='[{"op": "remove", "path": "/data/NAME"}]'
  ./setup.sh --only namespace               with the new value in the variable NAME or in SECRETS_FILE
The password of a Redis of your own (gke.redis) is /data/$REDIS_KEY of the Secret $REDIS_SECRET, from REDIS_PASSWORD.
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
    # Nothing is there yet where the service itself is off; Google says so as a refusal.
    *SERVICE_DISABLED* | *"has not been used in project"*) return 1 ;;
    # Who may not see a thing does not know whether it is there.
    *PERMISSION_DENIED* | *"code=403"* | *"HTTPError 403"* | *"does not have permission"* | *"(Forbidden)"*) ;;
    *NOT_FOUND* | *"code=404"* | *"HTTPError 404"* | *"not found: 404"* | *"(NotFound)"*) return 1 ;;
    # What gcloud says in words of its own: of Compute Engine, NAT, images, GKE.
    *"No cluster named '"* | *"No node pool named '"* | *"The resource '"*"' was not found"*) return 1 ;;
    *'NAT `'*'` not found'* | *"Image not found."*) return 1 ;;
    *"doesn't have a resource type"*) return 1 ;;
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
