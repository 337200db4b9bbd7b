# What a machine must have to run compose.yaml, step by step. Each step looks first and does only what is lacking, so
# this may run at every start of the machine, and again by hand: sudo google_metadata_script_runner startup

# Every path is below this, for rehearsals in a folder.
root="${STARTUP_ROOT:-}"
metadata_url="http://metadata.google.internal/computeMetadata/v1"
home="$root/opt/cotenant"
disk="$root/dev/disk/by-id/google-cotenant-data"
mount_point="$root/mnt/cotenant"
installer_url="https://storage.googleapis.com/compute-gpu-installation-us/installer/latest/cuda_installer.pyz"
export DEBIAN_FRONTEND=noninteractive

say() { echo "cotenant: $*"; }

die() {
  say "$*" >&2
  exit 1
}

# metadata PATH: what the metadata server says, or failure.
metadata() { curl --fail --silent --show-error --retry 5 --header "Metadata-Flavor: Google" "$metadata_url/$1"; }

token() { metadata instance/service-accounts/default/token | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p'; }

# replace FILE MODE: write standard input to FILE, unless it says so already. `changed` tells whether any file changed.
changed=false
replace() {
  local draft="$1.new"
  mkdir -p "$(dirname "$1")"
  (umask 077 && cat >"$draft")
  chmod "$2" "$draft"
  if [[ -f "$1" ]] && cmp --silent "$1" "$draft"; then
    rm "$draft"
  else
    mv "$draft" "$1"
    changed=true
  fi
}

packages() {
  apt-get update --quiet
  apt-get install --quiet --yes --no-install-recommends "$@"
}

# Major version of the NVIDIA driver that works; 0 if none does.
driver_version() {
  local version
  version="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
  [[ "$version" =~ ^([0-9]+)\. ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

# The image may bring the driver. Where it does not, Google's installer brings it, and starts the machine anew on the
# way: then this script runs again.
install_driver() {
  local version tries_file="$root/var/lib/cotenant-startup/driver-tries" tries
  version="$(driver_version)"
  if ((version >= driver_min)); then
    say "NVIDIA driver $version"
    return
  fi
  if ((version > 0)); then
    die "needs NVIDIA driver $driver_min or later for OptiX, and this image has $version; make the machine from another image"
  fi
  mkdir -p "$(dirname "$tries_file")"
  tries="$(($(cat "$tries_file" 2>/dev/null || echo 0) + 1))"
  echo "$tries" >"$tries_file"
  if ((tries > 4)); then
    die "no NVIDIA driver after 4 tries; read /opt/google/cuda-installer/*.log, then remove $tries_file and start the machine anew"
  fi
  say "NVIDIA driver: try $tries"
  command -v python3 >/dev/null || packages python3
  mkdir -p "$root/opt/google/cuda-installer"
  curl --fail --silent --show-error --location --retry 5 "$installer_url" --output "$root/opt/google/cuda-installer/cuda_installer.pyz"
  (cd "$root/opt/google/cuda-installer" && python3 cuda_installer.pyz install_driver --installation-mode=binary --installation-branch=prod) || true
  if (($(driver_version) < driver_min)); then
    say "the machine starts anew for the driver"
    exit 0
  fi
}

# Images, volumes and results on a disk that outlives the machine: a new one has them at once.
mount_disk() {
  local uuid folder
  if [[ ! -e "$disk" ]]; then
    say "no disk named cotenant-data: everything is on the boot disk, and goes with it"
    return
  fi
  if ! blkid "$disk" >/dev/null; then
    say "the data disk is empty: it gets a file system"
    mkfs.ext4 -q -m 0 -E lazy_itable_init=0,lazy_journal_init=0,discard "$disk"
  fi
  uuid="$(blkid --match-tag UUID --output value "$disk")"
  mkdir -p "$mount_point"
  in_fstab "UUID=$uuid" "$mount_point" "ext4 discard,defaults,nofail,x-systemd.before=containerd.service,x-systemd.before=docker.service 0 2"
  mountpoint --quiet "$mount_point" || mount "$mount_point"
  for folder in docker containerd; do
    if mountpoint --quiet "$root/var/lib/$folder"; then
      continue
    fi
    systemctl stop docker.socket docker containerd 2>/dev/null || true
    mkdir -p "$mount_point/$folder" "$root/var/lib/$folder"
    in_fstab "$mount_point/$folder" "$root/var/lib/$folder" "none bind,nofail,x-systemd.requires-mounts-for=$mount_point,x-systemd.before=containerd.service,x-systemd.before=docker.service 0 0"
    mount "$root/var/lib/$folder"
  done
}

# in_fstab WHAT WHERE HOW: one line for each place.
in_fstab() {
  if ! grep --quiet --fixed-strings " $2 " "$root/etc/fstab"; then
    echo "$1 $2 $3" >>"$root/etc/fstab"
    systemctl daemon-reload
  fi
}

# Docker's own packages: Debian's have no `docker compose`.
install_docker() {
  if docker compose version >/dev/null 2>&1; then
    systemctl start containerd docker
    return
  fi
  say "Docker"
  local id codename
  id="$(sed -n 's/^ID=//p' "$root/etc/os-release")"
  codename="$(sed -n 's/^VERSION_CODENAME=//p' "$root/etc/os-release")"
  packages ca-certificates curl
  mkdir -p "$root/etc/apt/keyrings"
  curl --fail --silent --show-error --location "https://download.docker.com/linux/$id/gpg" --output "$root/etc/apt/keyrings/docker.asc"
  echo "deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/$id $codename stable" \
    >"$root/etc/apt/sources.list.d/docker.list"
  packages docker-ce docker-ce-cli containerd.io docker-compose-plugin
}

install_toolkit() {
  local keyring=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg
  if ! command -v nvidia-ctk >/dev/null; then
    say "NVIDIA container toolkit"
    packages ca-certificates curl gnupg
    mkdir -p "$root$(dirname "$keyring")"
    curl --fail --silent --show-error --location https://nvidia.github.io/libnvidia-container/gpgkey | gpg --dearmor --yes --output "$root$keyring"
    curl --fail --silent --show-error --location https://nvidia.github.io/libnvidia-container/stable/deb/nvidia-container-toolkit.list |
      sed "s#deb https://#deb [signed-by=$keyring] https://#g" >"$root/etc/apt/sources.list.d/nvidia-container-toolkit.list"
    packages nvidia-container-toolkit
  fi
  # With systemd's cgroups a `systemctl daemon-reload` takes the GPU away from containers that run.
  if [[ ! -s "$root/etc/docker/daemon.json" ]]; then
    mkdir -p "$root/etc/docker"
    echo '{"exec-opts": ["native.cgroupdriver=cgroupfs"]}' >"$root/etc/docker/daemon.json"
  fi
  if ! grep --quiet nvidia-container-runtime "$root/etc/docker/daemon.json"; then
    nvidia-ctk runtime configure --runtime=docker --config="$root/etc/docker/daemon.json"
    systemctl restart docker
  fi
}

# The files that came with the machine as metadata.
write_files() {
  local name file fetched="$home/.fetched"
  for pair in "cotenant-compose compose.yaml" "cotenant-platform platform.yaml" "cotenant-caddyfile Caddyfile"; do
    read -r name file <<<"$pair"
    if metadata "instance/attributes/$name" >"$fetched"; then
      replace "$home/$file" 644 <"$fetched"
    elif [[ ! -f "$home/$file" ]]; then
      die "needs $file, and the machine has no metadata $name; give it: ./create.sh update"
    fi
  done
  # Where the files were before, they lay elsewhere.
  metadata instance/attributes/cotenant-env >"$fetched" 2>/dev/null || : >"$fetched"
  sed -i '/^COTENANT_\(PLATFORM_FILE\|SECRETS\)=/d' "$fetched"
  echo "COTENANT_PLATFORM_FILE=./platform.yaml" >>"$fetched"
  replace "$home/.env" 644 <"$fetched"
  rm "$fetched"
}

# API keys and other secrets, from Secret Manager: metadata can be read by all who may look at the machine.
write_secrets() {
  local answer payload
  if answer="$(curl --fail --silent --show-error --retry 3 --header "Authorization: Bearer $(token)" \
    "https://secretmanager.googleapis.com/v1/projects/$project/secrets/$secret/versions/latest:access")"; then
    payload="$(sed -n 's/.*"data" *: *"\([^"]*\)".*/\1/p' <<<"$answer")"
    replace "$home/secrets.env" 600 < <(base64 --decode <<<"$payload")
    return
  fi
  if [[ -f "$home/secrets.env" ]]; then
    say "Secret Manager does not answer for $secret: the secrets of last time stay"
    return
  fi
  die "needs the secret $secret of project $project, with the lines of secrets.env.example, and this machine's account may not read it or there is none"
}

write_unit() {
  replace "$home/login" 755 <<'SCRIPT'
#!/usr/bin/env bash
# Lets Docker pull from Artifact Registry for an hour, as the machine's own account.
set -euo pipefail
[[ -n "$REGISTRY" ]] || exit 0
curl --fail --silent --retry 5 --header "Metadata-Flavor: Google" \
  http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token |
  sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p' |
  docker login --username oauth2accesstoken --password-stdin "https://$REGISTRY"
SCRIPT
  replace "$home/stop" 755 <<'SCRIPT'
#!/usr/bin/env bash
# A machine that goes down is told shortly before: a spot machine 30 s, another one 90 s. Otherwise there is time.
set -euo pipefail
if [[ "$(systemctl is-system-running)" == stopping ]]; then
  exec docker compose stop --timeout "$LAST_WORDS_S" platform
fi
exec docker compose stop
SCRIPT
  replace "$root/etc/systemd/system/cotenant.service" 644 <<UNIT
[Unit]
Description=cotenant, environment $environment
Documentation=file:$home/compose.yaml
Wants=network-online.target docker.service
After=network-online.target docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=$home
Environment=HOME=/root REGISTRY=$registry LAST_WORDS_S=$last_words_s
ExecStartPre=$home/login
ExecStart=docker compose up --detach --wait --wait-timeout $start_s --remove-orphans
ExecReload=$home/login
ExecReload=docker compose pull --quiet
ExecReload=docker compose up --detach --wait --wait-timeout $start_s --remove-orphans
ExecStop=$home/stop
TimeoutStartSec=infinity
TimeoutStopSec=$((grace_s + 60))
Restart=on-failure
RestartSec=30
UNIT
}

main() {
  mkdir -p "$home"
  if ((gpus > 0)); then
    install_driver
  fi
  mount_disk
  install_docker
  if ((gpus > 0)); then
    install_toolkit
  fi
  write_files
  write_secrets
  write_unit
  if $changed; then
    systemctl daemon-reload
  fi
  if ! systemctl is-active --quiet cotenant; then
    systemctl start --no-block cotenant
    say "starts; watch it: journalctl --follow --unit cotenant"
  elif $changed; then
    systemctl reload --no-block cotenant
    say "runs, and takes what changed"
  else
    say "runs, and nothing changed"
  fi
}

main "$@"
