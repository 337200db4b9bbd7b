"""Which topics and subscriptions there must be, what differs from those that there are, and who needs which right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.config import Jobs
from cotenant.jobs.queue.setup import (
    OBJECT_USER,
    PUBLISHER,
    SUBSCRIBER,
    Grant,
    MemoryAdmin,
    Part,
    agent_grants,
    agent_of,
    agent_rights,
    apply,
    check,
    is_granted,
    own_rights,
    part_grants,
    recreate_commands,
)
from cotenant.jobs.queue.topology import (
    DAY_S,
    EMULATOR,
    LONGEST_RETENTION_S,
    Change,
    Resource,
    Step,
    Subscription,
    Topology,
    differences,
    kept_topology,
    labels_of,
    lane_topology,
    wanted,
)

pytestmark = pytest.mark.unit

JOBS = Jobs(max_attempts=4, retention_d=9, filter='attributes.kind = "job"')


def subscription(topology: Topology, name: str) -> Subscription:
    return {one.name: one for one in topology.subscriptions}[name]


# --- what there must be -------------------------------------------------------------------------------------


def test_every_topic_but_that_of_results_has_a_subscription() -> None:
    topology = wanted(JOBS, ["writer", "mockups"])
    assert [topic.name for topic in topology.topics] == [
        "jobs",
        "results",
        "dead",
        "jobs-clerk",
        "jobs.writer",
        "jobs.mockups",
    ]
    assert {one.topic for one in topology.subscriptions} == {topic.name for topic in topology.topics} - {"results"}


def test_the_main_lane_alone_is_filtered_since_its_topic_may_be_others() -> None:
    topology = wanted(JOBS, ["writer"])
    assert {one.name for one in topology.subscriptions if one.filter} == {"jobs-cotenant"}


def test_errands_and_dead_letters_are_never_given_up_and_all_else_goes_to_the_dead_letters() -> None:
    topology = wanted(JOBS, ["writer"])
    backstops = {one.name: (one.dead_letter, one.max_deliveries) for one in topology.subscriptions}
    assert backstops == {
        "jobs-cotenant": ("dead", 40),
        "jobs-cotenant.writer": ("dead", 40),
        "jobs-cotenant-clerk": (None, 0),
        "dead-kept": (None, 0),
    }


def test_nothing_expires_and_dead_letters_wait_the_longest() -> None:
    topology = wanted(JOBS, ["writer"])
    assert {one.expires_after_s for one in topology.subscriptions} == {None}
    retention = {one.name: one.retention_s for one in topology.subscriptions}
    assert retention.pop("dead-kept") == LONGEST_RETENTION_S
    assert set(retention.values()) == {9 * DAY_S}


def test_the_parts_of_single_lanes_are_parts_of_the_whole() -> None:
    whole = wanted(JOBS, ["writer"])
    for part in (lane_topology(JOBS, ""), lane_topology(JOBS, ".writer"), kept_topology(JOBS)):
        assert differences(part, whole) == ()


# --- what differs -------------------------------------------------------------------------------------------

WANTED = wanted(JOBS, ["writer"])


def changed(name: str, **settings: object) -> Topology:
    """What is wanted, but for these settings of one subscription."""
    return replace(
        WANTED,
        subscriptions=tuple(
            replace(one, **settings) if one.name == name else one  # type: ignore[arg-type]
            for one in WANTED.subscriptions
        ),
    )


def test_what_is_missing_is_created_topics_first() -> None:
    steps = differences(WANTED, Topology())
    assert [step.step for step in steps] == [Step.CREATE] * 9
    assert [step.kind for step in steps] == ["topic"] * 5 + ["subscription"] * 4


@pytest.mark.parametrize(
    ("setting", "value", "mask"),
    [
        ("lease_s", 10, "ack_deadline_seconds"),
        ("retention_s", DAY_S, "message_retention_duration"),
        ("dead_letter", None, "dead_letter_policy"),
        ("max_deliveries", 5, "dead_letter_policy"),
        ("min_backoff_s", None, "retry_policy"),
        ("max_backoff_s", 600.0, "retry_policy"),
        ("exactly_once", True, "enable_exactly_once_delivery"),
        ("expires_after_s", 31 * DAY_S, "expiration_policy"),
    ],
)
def test_a_setting_that_can_change_is_updated_by_the_field_that_carries_it(
    setting: str, value: object, mask: str
) -> None:
    (step,) = differences(WANTED, changed("jobs-cotenant", **{setting: value}))
    assert (step.step, step.mask, step.resource) == (Step.UPDATE, (mask,), subscription(WANTED, "jobs-cotenant"))
    assert [change.setting for change in step.changes] == [setting]


@pytest.mark.parametrize(
    ("setting", "value"), [("filter", ""), ("ordering", True), ("topic", "_deleted-topic_")], ids=str
)
def test_a_setting_that_is_fixed_at_creation_is_only_told(setting: str, value: object) -> None:
    (step,) = differences(WANTED, changed("jobs-cotenant", **{setting: value}))
    assert (step.step, step.mask) == (Step.RECREATE, ())
    assert recreate_commands("shop", step) == (
        "gcloud pubsub subscriptions delete jobs-cotenant --project shop",
        "cotenant jobs setup",
    )


def test_changes_are_told_in_words() -> None:
    steps = differences(WANTED, changed("jobs-cotenant", ordering=True, max_backoff_s=600.0, expires_after_s=DAY_S))
    assert [change for step in steps for change in step.changes] == [
        Change("max_backoff_s", "600", "10"),
        Change("expires_after_s", "86400", "none"),
        Change("ordering", "on", "off"),
    ]


def test_labels_of_others_stay() -> None:
    labelled = wanted(JOBS, ["writer"], labels_of("shop", "prod"))
    there = changed("jobs-cotenant", labels={"team": "print", "app": "cotenant", "platform": "shop"})
    step = {step.resource.name: step for step in differences(labelled, there)}["jobs-cotenant"]
    assert step.resource.labels == {"team": "print", "app": "cotenant", "platform": "shop", "environment": "prod"}
    assert step.mask == ("labels",)


def test_what_is_there_besides_is_nobodys_business() -> None:
    more = replace(WANTED, subscriptions=(*WANTED.subscriptions, Subscription("theirs", "jobs", 10, DAY_S)))
    assert differences(WANTED, more) == ()


# --- doing it -----------------------------------------------------------------------------------------------


async def test_setting_up_twice_changes_nothing_the_second_time() -> None:
    admin = MemoryAdmin()
    steps = await check(admin, WANTED)
    assert all(one.done for one in await apply(admin, steps))
    assert await check(admin, WANTED) == ()


async def test_a_dry_run_changes_nothing() -> None:
    admin = MemoryAdmin()
    applied = await apply(admin, await check(admin, WANTED), dry_run=True)
    assert {(one.done, one.trouble) for one in applied} == {(False, "")}
    assert admin.there == {}


async def test_one_that_may_not_be_created_keeps_no_other_back() -> None:
    admin = MemoryAdmin()
    admin.refused.add("jobs.writer")
    applied = await apply(admin, await check(admin, WANTED))
    failed = {one.difference.resource.name: one.trouble for one in applied if not one.done}
    assert failed == {
        "jobs.writer": "may not change jobs.writer",
        "jobs-cotenant.writer": "there is no topic jobs.writer",
    }


async def test_what_can_only_be_made_anew_is_left_and_told_with_what_that_costs() -> None:
    admin = MemoryAdmin(changed("jobs-cotenant", ordering=True, lease_s=10))
    update, recreate = await apply(admin, await check(admin, WANTED))
    assert update.done
    assert not recreate.done
    assert "drops what waits in it" in recreate.trouble
    there: Resource | None = await admin.subscription("jobs-cotenant")
    assert there == replace(subscription(WANTED, "jobs-cotenant"), ordering=True)


async def test_a_queue_that_can_do_less_is_asked_for_no_more() -> None:
    admin = MemoryAdmin(powers=EMULATOR)
    await apply(admin, await check(admin, WANTED))
    kept = await admin.subscription("dead-kept")
    assert kept is not None
    assert kept.retention_s == 7 * DAY_S
    lane = await admin.subscription("jobs-cotenant")
    assert lane is not None
    assert (lane.min_backoff_s, lane.max_backoff_s) == (None, None)
    assert await check(admin, WANTED) == ()


# --- rights -------------------------------------------------------------------------------------------------

AGENT = "serviceAccount:service-123@gcp-sa-pubsub.iam.gserviceaccount.com"


def test_pubsubs_agent_publishes_dead_letters_and_takes_them_from_every_lane_that_has_a_backstop() -> None:
    assert agent_of(123) == AGENT
    assert agent_grants(WANTED, 123) == (
        Grant("topic", "dead", PUBLISHER, AGENT),
        Grant("subscription", "jobs-cotenant", SUBSCRIBER, AGENT),
        Grant("subscription", "jobs-cotenant.writer", SUBSCRIBER, AGENT),
    )


def test_commands_find_the_project_number_by_themselves_where_it_is_not_known() -> None:
    publishes, takes, _ = agent_grants(WANTED)
    assert publishes.command("shop") == (
        'gcloud pubsub topics add-iam-policy-binding dead --project=shop --member="serviceAccount:service-$(gcloud '
        "projects describe shop --format='value(projectNumber)')@gcp-sa-pubsub.iam.gserviceaccount.com\" "
        "--role=roles/pubsub.publisher"
    )
    assert takes.command("shop").startswith("gcloud pubsub subscriptions add-iam-policy-binding jobs-cotenant ")


def test_each_part_gets_the_least_that_it_needs() -> None:
    jobs = JOBS.model_copy(update={"store": "gs://shop-jobs/prod"})
    got = {part: {(g.kind, g.name, g.role) for g in part_grants(part, jobs, ["writer"], "user:a@b")} for part in Part}
    lanes = {("topic", name, PUBLISHER) for name in ("jobs", "jobs-clerk", "jobs.writer")}
    bucket = {("bucket", "shop-jobs", OBJECT_USER)}
    assert got[Part.GATEWAY] == got[Part.SUBMITTER] == lanes | bucket
    assert got[Part.UNDERTAKER] == lanes | bucket | {("subscription", "dead-kept", SUBSCRIBER)}
    assert got[Part.INGRESS] == lanes | bucket | {
        ("topic", "results", PUBLISHER),
        ("topic", "dead", PUBLISHER),
        ("subscription", "jobs-cotenant", SUBSCRIBER),
        ("subscription", "jobs-cotenant.writer", SUBSCRIBER),
        ("subscription", "jobs-cotenant-clerk", SUBSCRIBER),
    }


@pytest.mark.parametrize(
    ("bindings", "given"),
    [
        ({PUBLISHER: {AGENT}}, True),
        ({"roles/pubsub.editor": {AGENT}}, True),
        ({SUBSCRIBER: {AGENT}}, False),
        ({PUBLISHER: {"user:someone@example.com"}}, False),
        ({}, False),
    ],
    ids=["the role", "one that includes it", "another", "somebody else", "nothing"],
)
def test_a_grant_is_found_in_a_policy(bindings: dict[str, set[str]], given: bool) -> None:
    assert is_granted(Grant("topic", "dead", PUBLISHER, AGENT), bindings) is given
    assert is_granted(Grant("topic", "dead", PUBLISHER), bindings) is given


async def test_rights_are_given_missing_or_unknown() -> None:
    admin = MemoryAdmin(WANTED)
    admin.policies["topic", "dead"] = {PUBLISHER: frozenset({AGENT})}
    admin.policies["subscription", "jobs-cotenant"] = {}
    rights = {right.grant.name: right.given for right in await agent_rights(admin, WANTED)}
    assert rights == {"dead": True, "jobs-cotenant": False, "jobs-cotenant.writer": None}
    admin.permissions = frozenset({"pubsub.topics.publish"})
    own = {(right.grant.name, right.given) for right in await own_rights(admin, Part.UNDERTAKER, JOBS, [])}
    assert own == {("jobs", True), ("jobs-clerk", True), ("dead-kept", False)}
