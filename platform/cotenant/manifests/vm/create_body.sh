# Each part is made only if it is not there. Nothing here is ever changed or deleted without being asked for.

usage() {
  cat <<USAGE
usage: create.sh [--dry-run] create | update | delete | ssh
  create   service account and its rights, secret, firewall (with DOMAIN), data disk, machine (in NETWORK)
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
network="${NETWORK:-default}"
files="cotenant-compose=compose.yaml,cotenant-platform=$platform_file,cotenant-caddyfile=Caddyfile"
[[ ! -f .env ]] || files+=",cotenant-env=.env"

run() {
  printf '+ '
  printf '%q ' "$@"
  printf '\n'
  $dry_run || "$@"
}

# is_there WORDS…: whether `gcloud WORDS` finds it.
is_there() { gcloud "$@" --project="$project" >/dev/null 2>&1; }

create() {
  is_there iam service-accounts describe "$account" ||
    run gcloud iam service-accounts create "${account%%@*}" --project="$project" --display-name="cotenant, environment $environment"
  for role in roles/artifactregistry.reader roles/pubsub.editor roles/logging.logWriter roles/monitoring.metricWriter; do
    run gcloud projects add-iam-policy-binding "$project" --member="serviceAccount:$account" --role="$role" --condition=None --quiet --format=none
  done
  if [[ -n "$bucket" ]]; then
    run gcloud storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" --role=roles/storage.objectUser --format=none
  fi
  if ! is_there secrets describe "$secret"; then
    if [[ ! -f secrets.env ]]; then
      echo "needs secrets.env with the API keys, and there is none here; copy secrets.env.example and fill it in" >&2
      exit 1
    fi
    run gcloud secrets create "$secret" --project="$project" --data-file=secrets.env --replication-policy=user-managed --locations="$region"
  fi
  run gcloud secrets add-iam-policy-binding "$secret" --project="$project" --member="serviceAccount:$account" --role=roles/secretmanager.secretAccessor --format=none
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
