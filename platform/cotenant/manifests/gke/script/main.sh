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
  $destroy || [[ -z "$SECRETS_FILE" || -r "$SECRETS_FILE" ]] || die "SECRETS_FILE=$SECRETS_FILE can't be read"
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
