# --- steps: cluster, operator, namespace, address -------------------------------------------------------------------

cluster_status() {
  look gcloud container clusters describe "$CLUSTER" --location="$REGION" --project="$PROJECT" --format='value(status)'
}

# at_least VERSION LEAST
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }

# cluster_version: in `answer` which version to make the cluster with; empty if the channel's own default will do.
cluster_version() {
  local standard="" each best="" newest=""
  local -a versions=()
  look gcloud container get-server-config --location="$REGION" --project="$PROJECT" --flatten=channels \
    --filter="channels.channel=${CHANNEL^^}" --format='value(channels.defaultVersion,channels.validVersions)' || true
  read -r standard each <<<"$answer"
  answer=$CLUSTER_VERSION
  read -ra versions <<<"${each//[;,]/ }"
  if ! ((${#versions[@]})); then
    warn "which versions channel $CHANNEL has in $REGION is not known; the cluster's is looked at once it is made"
    return
  fi
  if [[ -z "$CLUSTER_VERSION" ]] && at_least "$standard" "$LEAST_VERSION"; then return; fi
  for each in "${versions[@]}"; do
    if [[ -z "$newest" ]] || ! at_least "$newest" "$each"; then newest=$each; fi
    # A short CLUSTER_VERSION stands for its newest patch, as GKE takes it.
    case "$each" in
      "${CLUSTER_VERSION/#latest/$each}" | "$CLUSTER_VERSION"[.-]*) ;;
      *) [[ -z "$CLUSTER_VERSION" ]] || continue ;;
    esac
    at_least "$each" "$LEAST_VERSION" || continue
    # Without a wish it is the oldest that will do, which is nearest to the channel's default.
    if [[ -z "$best" ]] || ! at_least "$each" "$best"; then best=$each; fi
  done
  [[ -n "$best" ]] || die "needs a cluster of version $LEAST_VERSION or later (gke.version), and channel $CHANNEL in \
$REGION has $newest at the most${CLUSTER_VERSION:+, none of it as CLUSTER_VERSION=$CLUSTER_VERSION asks}; set \
${CLUSTER_VERSION:+another CLUSTER_VERSION or }CHANNEL=rapid, or lower gke.version. What there is: gcloud container \
get-server-config --location=$REGION --project=$PROJECT"
  [[ -n "$CLUSTER_VERSION" ]] || answer=$best
}

do_cluster() {
  local -a more=()
  if [[ -n "$AUTHORIZED_NETWORKS" ]]; then
    more+=(--enable-master-authorized-networks --master-authorized-networks="$AUTHORIZED_NETWORKS")
  else
    # The control plane is reached by its name, which asks IAM; it has no address to reach it by.
    more+=(--no-enable-ip-access)
  fi
  if cluster_status; then
    have "cluster $CLUSTER"
  else
    cluster_version
    [[ -z "$answer" ]] || more+=(--cluster-version="$answer")
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
  at_least "$answer" "$LEAST_VERSION" ||
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

do_namespace() {
  need kubectl
  if found_in_cluster namespace "$NAMESPACE" --output=name; then
    have "namespace $NAMESPACE"
  else
    run kubectl create namespace "$NAMESPACE"
  fi
  fill "$SECRET" "${SECRET_KEYS[@]}"
  fill "$TOKEN_SECRET" "$TOKEN_KEY"
  fill "$REDIS_SECRET" "$REDIS_KEY"
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
