"""An ingress as a plain Deployment, scaled by the queue's metric: by an HPA, or by KEDA, which can take it to zero.

Neither can scale Ray workers: an HPA and KEDA set a scale subresource, and RayService and RayCluster have none. So they
scale this process, which pulls jobs and has the gateway do them; what the workloads get is up to the platform's own
policy, as ever. The metric is Cloud Monitoring's `num_undelivered_messages`, which is a minute or two old; the ingress
that Serve runs sees its own queue and needs no metric. Both may run side by side: they pull from one subscription.
"""

from __future__ import annotations

from cotenant.config import Platform
from cotenant.manifests.gke.placement import pod_placement
from cotenant.manifests.kubernetes.access import priority_name
from cotenant.manifests.kubernetes.containers import SECRET, door_secrets, pod_security
from cotenant.manifests.kubernetes.door import SERVICE
from cotenant.manifests.kubernetes.front import front_of
from cotenant.manifests.kubernetes.objects import (
    ADDED_BY_OVERLAY,
    Object,
    from_secret,
    metadata,
    unprivileged,
    variables,
)
from cotenant.manifests.resolved import platform_file
from cotenant.manifests.site import HOME, Site

NAME = "ingress"
#: Jobs of each workload that one replica works on at once, and undelivered messages for each replica by the metric.
JOBS_PER_REPLICA = 4
MOST_REPLICAS = 10
_PORT = 8090
_SELECTOR = {"app.kubernetes.io/name": NAME}
#: The gateway's key for it, in the Secret that `setup.sh` makes.
UPSTREAM_KEY = "COTENANT_UPSTREAM_KEY"


def ingress_deployment(platform: Platform) -> list[Object]:
    """The Deployment and the platform file that it reads."""
    site = Site.of(platform)
    amount = {"cpu": "250m", "memory": "512Mi"}
    container = {
        "name": NAME,
        "image": site.image("doors"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["cotenant", "ingress", "-f", "/etc/cotenant/platform.yaml", "-e", platform.environment],
        "args": [
            f"--upstream=http://{SERVICE}:{platform.gateway.port}",
            f"--concurrency={JOBS_PER_REPLICA}",
            "--host=0.0.0.0",
            f"--port={_PORT}",
        ],
        "env": [
            *variables({"COTENANT_HOME": HOME, "HOME": HOME}),
            *door_secrets(platform)[-1:],
            from_secret(UPSTREAM_KEY, SECRET, optional=True),
        ],
        "ports": [{"name": "http", "containerPort": _PORT}],
        "resources": {"requests": dict(amount), "limits": dict(amount)},
        "securityContext": unprivileged(),
        "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 5},
        "volumeMounts": [
            {"name": "platform", "mountPath": "/etc/cotenant", "readOnly": True},
            {"name": "home", "mountPath": HOME},
        ],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(site, f"{NAME}-platform", labels=ADDED_BY_OVERLAY),
            "data": {"platform.yaml": platform_file(platform)},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(site, NAME, labels=ADDED_BY_OVERLAY),
            "spec": {
                # Its number is the autoscaler's to set.
                "selector": {"matchLabels": _SELECTOR},
                "template": {
                    "metadata": {"labels": {**site.labels, **ADDED_BY_OVERLAY, **_SELECTOR}},
                    "spec": {
                        "serviceAccountName": site.service_account,
                        "automountServiceAccountToken": False,
                        "priorityClassName": priority_name(site, "doors"),
                        # On SIGTERM it finishes what it has, and hands back the rest.
                        "terminationGracePeriodSeconds": platform.jobs.drain_s + 30,
                        "securityContext": pod_security(),
                        **pod_placement(platform, front_of(platform)),
                        "containers": [container],
                        "volumes": [
                            {"name": "platform", "configMap": {"name": f"{NAME}-platform"}},
                            {"name": "home", "emptyDir": {"sizeLimit": "1Gi"}},
                        ],
                    },
                },
            },
        },
    ]


def external_metric_hpa(platform: Platform) -> list[Object]:
    """An HPA on the main subscription's backlog (needs the Custom Metrics Stackdriver Adapter). Never to zero."""
    site = Site.of(platform)
    metric = {
        "name": "pubsub.googleapis.com|subscription|num_undelivered_messages",
        "selector": {"matchLabels": {"resource.labels.subscription_id": platform.jobs.subscription}},
    }
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata(site, NAME, labels=ADDED_BY_OVERLAY),
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME},
                "minReplicas": 1,
                "maxReplicas": MOST_REPLICAS,
                "metrics": [
                    {
                        "type": "External",
                        "external": {
                            "metric": metric,
                            "target": {"type": "AverageValue", "averageValue": str(JOBS_PER_REPLICA)},
                        },
                    }
                ],
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 0},
                    # The metric lags: what it says is empty may be two minutes old.
                    "scaleDown": {"stabilizationWindowSeconds": 300},
                },
            },
        }
    ]


def keda_scaler(platform: Platform) -> list[Object]:
    """KEDA on the same backlog, from zero. Its operator reads Cloud Monitoring as its own service account.

    By the `stackdriver` trigger, since KEDA's documentation calls its Pub/Sub trigger deprecated.
    """
    site, jobs = Site.of(platform), platform.jobs
    subscription = f'resource.labels.subscription_id = "{jobs.subscription}"'
    told = {
        "projectId": jobs.project,
        "filter": f'metric.type = "pubsub.googleapis.com/subscription/num_undelivered_messages" AND {subscription}',
        "targetValue": str(JOBS_PER_REPLICA),
        "activationTargetValue": "0",
        # A gap in the metric is no empty queue.
        "valueIfNull": "1",
    }
    return [
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "TriggerAuthentication",
            "metadata": metadata(site, NAME, labels=ADDED_BY_OVERLAY),
            "spec": {"podIdentity": {"provider": "gcp"}},
        },
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": metadata(site, NAME, labels=ADDED_BY_OVERLAY),
            "spec": {
                "scaleTargetRef": {"name": NAME},
                "minReplicaCount": 0,
                "maxReplicaCount": MOST_REPLICAS,
                "pollingInterval": 15,
                "cooldownPeriod": 300,
                "triggers": [{"type": "gcp-stackdriver", "metadata": told, "authenticationRef": {"name": NAME}}],
            },
        },
    ]
