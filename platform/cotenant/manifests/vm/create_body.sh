# Each part is made only if it is not there. Nothing here is ever changed or deleted without being asked for. What is
# there is found as whoever runs this may see it: what can't be seen is made, and Google refuses to make it twice.

usage() {
  cat <<USAGE
usage: create.sh [--dry-run] create | update | delete | ssh
  create   services, registry, buckets, topics, service account and its rights, secret, firewall (with DOMAIN), data
           disk, machine (in NETWORK); stops where it needs the image, and goes on there when run again
  update   give the machine the files beside this script, and have it take them
  delete   the machine and the firewall rule; the data disk and the account stay
  ssh      a shell on it, with its HTTP door on localhost:$port
USAGE
  exit 2
}

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
[[ $# == 1 ]] || usage
cd "$(dirname "$0")"

# The platform file may lie elsewhere, and .env is yours.
platform_file="${COTENANT_PLATFORM_FILE:-$platform_file}"
domain="${DOMAIN:-$domain}"
client="${COTENANT:-cotenant}"
network="${NETWORK:-default}"
files="cotenant-compose=compose.yaml,cotenant-platform=$platform_file,cotenant-caddyfile=Caddyfile"
[[ ! -f .env ]] || files+=",cotenant-env=.env"

run() {
  printf '+ '
  printf '%q ' "$@"
  printf '\n'
  $dry_run || "$@"
}

die() {
  printf 'create.sh: %s\n' "$*" >&2
  exit 1
}

# setting NAME: what .env says of it.
setting() { [[ ! -f .env ]] || sed -n "s/^$1=//p" .env | tail -n 1; }

# is_there WORDS…: whether `gcloud WORDS` finds it.
is_there() { gcloud "$@" --project="$project" >/dev/null 2>&1; }

# grant ROLE MEMBER WORDS…: `gcloud WORDS` binds it. An account that was made a moment ago is not known everywhere yet.
grant() {
  local role=$1 member=$2 tries
  shift 2
  for tries in 1 2 3 4 5 6; do
    if run gcloud "$@" --member="serviceAccount:$member" --role="$role" --format=none; then return; fi
    ((tries < 6)) || die "could not give $role to $member: gcloud $*"
    sleep "${PAUSE_S:-10}"
  done
}

# Lists may be empty, which bash before 4.4 takes for unset: hence `${list[@]+…}`.
# each_grant MEMBER LINE…: lines "kind name role".
each_grant() {
  local member=$1 kind resource role line
  shift
  for line in "$@"; do
    read -r kind resource role <<<"$line"
    case "$kind" in
      topic) grant "$role" "$member" pubsub topics add-iam-policy-binding "$resource" --project="$jobs_project" ;;
      subscription)
        grant "$role" "$member" pubsub subscriptions add-iam-policy-binding "$resource" --project="$jobs_project"
        ;;
      bucket) grant "$role" "$member" storage buckets add-iam-policy-binding "gs://$resource" ;;
      *) die "no rights on a $kind are known" ;;
    esac
  done
}

# Topics and subscriptions, and the rights on them of Pub/Sub's own agent; without jobs, or with the emulator, none.
queue() {
  local number=PROJECT_NUMBER
  local -a setup=("$client" jobs setup --file "$platform_file" --env "$environment")
  if ((${#subscriptions[@]} == 0)) || [[ -n "$(setting PUBSUB_EMULATOR_HOST)" ]]; then return; fi
  $dry_run || command -v "$client" >/dev/null ||
    die "needs cotenant for the topics of jobs: pip install 'cotenant[gcp]', or name it in COTENANT"
  # What it lacks then is the rights that follow, or it says why.
  run "${setup[@]}" || echo "rights are given now"
  if ! $dry_run; then
    number="$(gcloud projects describe "$jobs_project" --format='value(projectNumber)')"
  fi
  each_grant "service-$number@gcp-sa-pubsub.iam.gserviceaccount.com" ${agent_grants[@]+"${agent_grants[@]}"}
  run "${setup[@]}" --check || die "topics and subscriptions are not as they should be; what is wrong stands above"
}

# The account's rights, each on one thing. Writing logs, which the machine's own agent does, can only be given on all.
rights() {
  local line weights
  for line in ${grants[@]+"${grants[@]}"}; do
    [[ "$line" == bucket\ * || -z "$(setting PUBSUB_EMULATOR_HOST)" ]] || continue
    each_grant "$account" "$line"
  done
  for weights in ${weight_buckets[@]+"${weight_buckets[@]}"}; do
    each_grant "$account" "bucket $weights roles/storage.objectViewer"
  done
  grant roles/artifactregistry.reader "$account" artifacts repositories add-iam-policy-binding "$repository" \
    --project="$project" --location="$region"
  grant roles/logging.logWriter "$account" projects add-iam-policy-binding "$project" --condition=None
}

need_secrets() {
  if [[ ! -f secrets.env ]]; then
    die "needs secrets.env with the API keys, and there is none here; copy secrets.env.example and fill it in"
  fi
  [[ -z "$keys" ]] || grep -q "^$keys=." secrets.env ||
    die "needs a line $keys=tenant:key in secrets.env, and there is none; secrets.env.example says how to make one"
}

# The image that .env names instead is not looked for.
need_image() {
  if [[ -n "$(setting COTENANT_IMAGE)" ]] || is_there artifacts docker images describe "$image"; then return; fi
  local what="$image is not there; push it (docs/images.md: scripts/build_images $target -e $environment --push)"
  if $dry_run; then
    echo "$what"
  else
    die "$what, then run this again: it goes on here"
  fi
}

create() {
  local bucket
  is_there secrets describe "$secret" || need_secrets
  run gcloud services enable "${services[@]}" --project="$project"
  is_there artifacts repositories describe "$repository" --location="$region" ||
    run gcloud artifacts repositories create "$repository" --project="$project" --location="$region" --repository-format=docker
  for bucket in ${buckets[@]+"${buckets[@]}"}; do
    is_there storage buckets describe "gs://$bucket" ||
      run gcloud storage buckets create "gs://$bucket" --project="$project" --location="$region" \
        --uniform-bucket-level-access --public-access-prevention
  done
  queue
  is_there iam service-accounts describe "$account" ||
    run gcloud iam service-accounts create "${account%%@*}" --project="$project" --display-name="cotenant, environment $environment, one VM"
  rights
  if ! is_there secrets describe "$secret"; then
    run gcloud secrets create "$secret" --project="$project" --data-file=secrets.env --replication-policy=user-managed --locations="$region"
  fi
  grant roles/secretmanager.secretAccessor "$account" secrets add-iam-policy-binding "$secret" --project="$project"
  if [[ -n "$domain" ]] && ! is_there compute firewall-rules describe "$name-tls"; then
    run gcloud compute firewall-rules create "$name-tls" --project="$project" --network="$network" --direction=INGRESS \
      --allow=tcp:80,tcp:443,udp:443 --target-tags="$name-tls"
  fi
  is_there compute disks describe "$name-data" --zone="$zone" ||
    run gcloud compute disks create "$name-data" --project="$project" --zone="$zone" --type=pd-balanced --size="$disk_gb"
  if is_there compute instances describe "$name" --zone="$zone"; then
    echo "$name is there already; ./create.sh update gives it these files"
    return
  fi
  need_image
  run gcloud compute instances create "$name" --project="$project" --zone="$zone" --machine-type="$machine" \
    "${model[@]}" --network="$network" \
    --image-project="$image_project" --image-family="$image_family" --boot-disk-size=50 --boot-disk-type=pd-balanced \
    --disk="name=$name-data,device-name=cotenant-data,mode=rw,boot=no,auto-delete=no" \
    --service-account="$account" --scopes=cloud-platform \
    --shielded-vtpm --shielded-integrity-monitoring \
    --labels="cotenant-environment=$environment" --tags="$name-tls" --metadata=enable-oslogin=TRUE \
    --metadata-from-file="startup-script=startup.sh,$files"
}

update() {
  [[ ! -f secrets.env ]] || need_secrets
  run gcloud compute instances add-metadata "$name" --project="$project" --zone="$zone" --metadata-from-file="startup-script=startup.sh,$files"
  if [[ -f secrets.env ]]; then
    run gcloud secrets versions add "$secret" --project="$project" --data-file=secrets.env
  fi
  run gcloud compute ssh "$name" --project="$project" --zone="$zone" --tunnel-through-iap --command="sudo google_metadata_script_runner startup"
}

delete() {
  run gcloud compute instances delete "$name" --project="$project" --zone="$zone" --quiet
  if is_there compute firewall-rules describe "$name-tls"; then
    run gcloud compute firewall-rules delete "$name-tls" --project="$project" --quiet
  fi
  echo "kept: disk $name-data (gcloud compute disks delete $name-data --zone=$zone), secret $secret, account $account"
}

case "$1" in
  create | update | delete) "$1" ;;
  ssh) run gcloud compute ssh "$name" --project="$project" --zone="$zone" --tunnel-through-iap -- -L "$port:localhost:$port" ;;
  *) usage ;;
esac
