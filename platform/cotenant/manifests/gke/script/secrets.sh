# --- the namespace's Secrets ----------------------------------------------------------------------------------------
# What a Secret has is never overwritten. Only names of keys are shown. Values go to kubectl by standard input, so that
# no list of processes shows one.

random() { head -c 32 /dev/urandom | base64 | tr -d '\n='; }

# value_of NAME: from the environment, else from the file of secrets; empty if from neither.
value_of() {
  local value
  if [[ -n "${!1:-}" ]]; then
    printf '%s' "${!1}"
  elif [[ -n "$SECRETS_FILE" ]]; then
    value="$(sed -n "s/^$1=//p" "$SECRETS_FILE" | head -n 1 | tr -d '\r\n')"
    [[ "$value" != [\"\']* ]] || die "$1 in $SECRETS_FILE begins with a quote, which would be part of the value: take it out"
    printf '%s' "$value"
  fi
}

# among NAME EACH...: whether it is one of them.
among() {
  local each name=$1
  shift
  for each in "$@"; do
    [[ "$each" != "$name" ]] || return 0
  done
  return 1
}

# keys_of SECRET: its version, then the names of its keys, a line each, in `answer`; false if there is no such Secret. A key
# without a value counts as none.
keys_of() {
  found_in_cluster secret "$1" --namespace="$NAMESPACE" \
    --output="go-template={{.metadata.resourceVersion}}{{range \$key, \$value := .data}}{{if \$value}}{{\"\\n\"}}{{\$key}}{{end}}{{end}}"
}

# first_key THERE...: that of the first entry, `tenant:key` or `key`, of the gateway's keys. If the Secret has them, the
# gateway goes by those, whatever is given now.
first_key() {
  local entry
  [[ -n "$NEEDED_KEY" ]] || return 0
  if among "$NEEDED_KEY" "$@"; then
    look kubectl get secret "$SECRET" --namespace="$NAMESPACE" \
      --output="go-template={{index .data \"$NEEDED_KEY\" | base64decode}}" || return 0
    entry=$answer
  else
    entry="$(value_of "$NEEDED_KEY")" || return 1
  fi
  entry="${entry%%,*}"
  entry="${entry#*:}"
  printf '%s' "${entry//[[:space:]]/}"
}

# given SECRET KEY: the value that is given for a key; empty if none is.
given() {
  case "$1/$2" in
    "$TOKEN_SECRET/$TOKEN_KEY") ;;
    "$REDIS_SECRET/$REDIS_KEY") $OWN_REDIS || value_of REDIS_PASSWORD ;;
    *) value_of "$2" ;;
  esac
}

# new_value SECRET KEY THERE...: for a key that the Secret lacks; empty if there is none. THERE is what it has.
new_value() {
  local value
  value="$(given "$1" "$2")" || return 1
  if [[ -n "$value" ]]; then
    printf '%s' "$value"
    return
  fi
  case "$1/$2" in
    "$TOKEN_SECRET/$TOKEN_KEY") random ;;
    "$REDIS_SECRET/$REDIS_KEY") if $OWN_REDIS; then random; fi ;;
    # An ingress outside of Ray asks the gateway as anybody else does: with the first of its keys.
    "$SECRET/$UPSTREAM_KEY") first_key "${@:3}" ;;
  esac
}

# not_given SECRET KEY: says so. Without some keys no pod starts; that ends it.
not_given() {
  local name=$2 what="" how
  case "$1/$2" in
    "$SECRET/$NEEDED_KEY") what=" (tenant:key, comma-separated)" ;;
    "$REDIS_SECRET/$REDIS_KEY") name=REDIS_PASSWORD what=", that of gke.redis," ;;
    "$SECRET/$WEBHOOKS_KEY")
      say "  - secret $1 is without $2: webhooks are not sent"
      return
      ;;
  esac
  how="in the environment, or SECRETS_FILE with a line $name=…"
  if [[ -z "$what" ]]; then
    warn "secret $1 is without $name, and so is what reads it; to add it, run this again with $name $how"
  elif $dry; then
    warn "needs $name$what $how"
  else
    die "needs $name$what $how"
  fi
}

# send SECRET VERSION KEY=VALUE...: makes the Secret, or adds to the one of that version; of another one it is refused.
send() {
  local name=$1 version=$2 pair more=""
  local -a command=(kubectl create --filename=-)
  shift 2
  if [[ -n "$version" ]]; then
    command=(kubectl patch secret "$name" --namespace="$NAMESPACE" --type=merge --patch-file=/dev/stdin)
    more=", resourceVersion: \"$version\""
  fi
  if $dry; then
    say "  would run: ${command[*]}   (Secret $name with ${*%%=*})"
    return
  fi
  say "  + ${command[*]}   (Secret $name with ${*%%=*})"
  {
    printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s%s}\ndata:\n' "$name" "$NAMESPACE" "$more"
    for pair in "$@"; do
      printf '  "%s": "%s"\n' "${pair%%=*}" "$(printf '%s' "${pair#*=}" | base64 | tr -d '\n')"
    done
  } | "${command[@]}" >/dev/null
}

# fill SECRET KEY...: it has these keys. What it has stays as it is, and a key that nobody asks for too.
fill() {
  local name=$1 version="" key value
  local -a there=() pairs=() kept=()
  shift
  if keys_of "$name"; then
    { read -r version && mapfile -t there; } <<<"$answer"
    have "secret $name"
  fi
  for key in "$@"; do
    if among "$key" "${there[@]}"; then
      value="$(given "$name" "$key")" || exit 1
      [[ -z "$value" ]] || kept+=("$key")
      continue
    fi
    value="$(new_value "$name" "$key" "${there[@]}")" || exit 1
    if [[ -n "$value" ]]; then pairs+=("$key=$value"); else not_given "$name" "$key"; fi
  done
  ((${#kept[@]} == 0)) || say "  = its ${kept[*]} stays as it is, whatever is given; --help says how to change it"
  ((${#pairs[@]})) || return 0
  send "$name" "$version" "${pairs[@]}"
  if [[ -n "$version" ]] && ! $dry; then say "  pods that run already get it when they are started anew"; fi
}
