"""What headroom asks for, decided on by the schedulers of both of Ray's autoscalers: no process is started."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.scaling.headroom import Ask, PoolTerms, Use, ask_for

pytestmark = pytest.mark.integration

MARKER = "cotenant-pool-shared"
POOL = PoolTerms("shared", min=0, max=5, spare=1, marker=MARKER, resources={MARKER: 1000.0, "GPU": 1.0})
NODE = {"CPU": 4.0, "GPU": 1.0, MARKER: 1000.0}


def second_generation(used: list[str], idle: list[str], asked: Ask, *, waiting: int = 0) -> tuple[int, set[str], bool]:
    """Nodes that it would make, nodes that it would end, and whether it can give all that was asked for."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated import autoscaler_pb2
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    def instance(name: str, *, busy: bool) -> Any:
        free = {**NODE, "GPU": 0.5, MARKER: 999.999} if busy else NODE
        ray_node = autoscaler_pb2.NodeState(
            node_id=name.encode(), total_resources=NODE, available_resources=free, labels={"ray.io/node-id": name},
            idle_duration_ms=0 if busy else 10**6, ray_node_type_name="shared",
        )  # fmt: skip
        im = Instance(
            instance_id=name, instance_type="shared", status=Instance.RAY_RUNNING, node_id=name,
            node_kind=NodeKind.WORKER,
        )  # fmt: skip
        return AutoscalerInstance(ray_node=ray_node, im_instance=im, cloud_instance_id=name)

    nodes = [instance(name, busy=False) for name in idle] + [instance(name, busy=True) for name in used]
    constraints = []
    if asked.bundles:
        requests = [
            ResourceRequestUtil.make(dict(bundle), label_selectors=[_selector(labels)] if labels else None)
            for bundle, labels in zip(asked.bundles, asked.selectors, strict=True)
        ]
        grouped = [autoscaler_pb2.ResourceRequestByCount(request=request, count=1) for request in requests]
        constraints = [autoscaler_pb2.ClusterResourceConstraint(resource_requests=grouped)]
    demand = ResourceRequestUtil.make({"GPU": 0.6, MARKER: 0.001, "CPU": 1.0})
    demands = [autoscaler_pb2.ResourceRequestByCount(request=demand, count=waiting)] if waiting else []
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs={
                "shared": NodeTypeConfig(name="shared", min_worker_nodes=0, max_worker_nodes=POOL.max, resources=NODE)
            },
            max_num_nodes=20,
            idle_timeout_s=60,
            resource_requests=demands,
            cluster_resource_constraints=constraints,
            current_instances=nodes,
        )
    )
    made = sum(launch.count for launch in reply.to_launch)
    ended = {request.instance_id for request in reply.to_terminate}
    return made, ended, not reply.infeasible_cluster_resource_constraints


def _selector(labels: Any) -> Any:
    from ray.core.generated.common_pb2 import LabelSelectorOperator

    ((key, value),) = labels.items()
    assert value.startswith("!in(")
    return [(key, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN, value[4:-1].split(","))]


def ask(used: list[str], idle: list[str], wanted: int, *, missing: int = 0) -> Ask:
    return ask_for([(POOL, Use(frozenset(used), frozenset(idle), missing=missing), wanted)], apart=True)


def test_a_spare_node_is_made_while_none_is_there_and_then_kept() -> None:
    assert second_generation([], [], ask([], [], 1)) == (1, set(), True)
    assert second_generation([], ["i1"], ask([], ["i1"], 1)) == (0, set(), True)
    assert second_generation([], ["i1"], Ask()) == (0, {"i1"}, True)


def test_of_many_idle_nodes_only_the_spare_one_is_kept_whatever_their_order() -> None:
    used, idle = ["u1", "u2"], ["i1", "i2", "i3"]
    made, ended, all_given = second_generation(used, idle, ask(used, idle, 3))
    assert (made, len(ended), all_given) == (0, 2, True)
    assert ended < set(idle)
    # The plain way, as many bundles as nodes: idle nodes are kept in place of the used ones, which stay anyway.
    plain = Ask((POOL.resources,) * 3, ({},) * 3)
    assert len(second_generation(used, idle, plain)[1]) == 0


def test_a_spare_node_comes_beside_the_one_that_something_waits_for() -> None:
    asked = ask(["u1"], [], 3, missing=1)
    assert second_generation(["u1"], [], asked, waiting=1) == (2, set(), True)


def test_nothing_is_asked_past_max_since_that_would_void_all_of_it() -> None:
    used = ["u1", "u2", "u3", "u4"]
    assert second_generation(used, [], ask(used, [], POOL.max)) == (1, set(), True)
    assert second_generation(used, [], ask(used, [], POOL.max + 1))[::2] == (0, False)


def test_the_first_generation_keeps_the_nodes_that_were_used_last() -> None:
    from ray.autoscaler._private.resource_demand_scheduler import get_bin_pack_residual

    asked = ask_for([(POOL, Use(frozenset(["u1", "u2"]), frozenset(["i1", "i2"])), 3)], apart=False)
    last_used_first = [dict(NODE) for _ in ("u1", "u2", "i1", "i2")]
    left, residual = get_bin_pack_residual(last_used_first, [dict(bundle) for bundle in asked.bundles])
    assert left == []
    assert [node[MARKER] for node in residual] == [0, 0, 0, 1000]
