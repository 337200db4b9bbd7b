"""Every error that cotenant raises on purpose, in one tree.

    CotenantError
    ├── ConfigError            the platform file is wrong: the user's to mend (exit code 2)
    ├── PlanError              the platform does not fit its pools (exit code 2)
    ├── NoRoom                 a replica can't join a GPU: with it, some tenant there could never wake
    ├── EnvironmentFault       this machine lacks something: Ray, Java, a port, a token (exit code 1)
    ├── DeployFailed           Serve took the config and could not run it (exit code 1)
    ├── JobsFileError          a file of jobs is wrong: nothing of it was published (exit code 2)
    ├── JobError               a job can't be taken further
    │   ├── RequestRefused     a request about jobs, batches or files is wrong: answered with its HTTP status
    │   ├── MalformedJob       the message is not a job, and never will be
    │   ├── IdentityConflict   another job already has this tenant, batch and custom_id
    │   ├── SourceUnavailable  Pub/Sub did not answer: nothing is lost, try again
    │   └── StoreUnavailable   the result store did not answer: nothing is lost, try again
    ├── OutboundError          an HTTP call by somebody's URL (a picture, a webhook) came to nothing
    │   ├── UrlInvalid         the URL is none that is ever called: no call was made
    │   ├── UrlRefused         the URL leads where no call may go, by its port or its address: no call was made
    │   └── Unreachable        its host has no address, does not take the call, or does not speak HTTP
    │       └── TimedOut       its host took too long
    ├── ClusterError           Kubernetes did not do what was asked (exit code 1)
    │   ├── NotConnected       no cluster is reached: no kubeconfig, no such context, no login, no route
    │   ├── ClusterBusy        it was asked again and again, and did not answer or answered 429 or 5xx
    │   ├── NotPermitted       it knows us and does not let us: verb, resource and namespace are said
    │   ├── KindMissing        it knows no objects of that kind: its operator is not installed
    │   ├── NamespaceMissing   the namespace is not there, or is being deleted
    │   ├── ManifestRefused    an object is wrong: its fields are said
    │   ├── FieldsOwned        somebody else set fields of the object otherwise; nothing was forced
    │   ├── Changed            the object is there already, or is another than was read
    │   ├── Gone               that version is too old to watch from: list again
    │   ├── NoRevision         there is nothing to go back to
    │   └── RolloutFailed      everything was applied and did not become healthy
    ├── SignatureInvalid       what claims to be a webhook was not signed so by who holds the secret
    └── CallError              a call to a workload ended without a reply
        ├── UnknownWorkload    no workload serves this route, model or template
        ├── Overloaded         its queue is full: come back after `retry_after_s`
        ├── DeadlineExceeded   the caller's deadline passed; the work was cancelled
        ├── ReplicaDied        the replica died with the call: safe to repeat, it left no result
        ├── BudgetExceeded     the replica was stopped because it held more than its VRAM budget: not to be repeated
        └── WorkloadUnavailable  no replica is ready, or the engine broke in a way of its own

Messages follow one pattern: *need, have, next step*. A foreign exception (Ray's, NVML's, Google's) is
translated into one of these at the edge that met it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class CotenantError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a user as it is."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the platform file: where it is (1-based line) and what to do about it."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class ConfigError(CotenantError):
    """The platform file is wrong. Holds every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PlanError(CotenantError):
    """A workload fits no GPU, or the minimum does not fit the pool's nodes."""

    exit_code = 2


class NoRoom(CotenantError):
    """A replica can't join a GPU: with it, some tenant there could never wake."""


class EnvironmentFault(CotenantError):
    """This machine lacks something that the command needs."""


class DeployFailed(CotenantError):
    """Serve accepted the config and could not run it; what ran before goes on serving."""


class JobsFileError(CotenantError):
    """A file of jobs is wrong. Holds every problem found; nothing of the file was published."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class TraceError(CotenantError):
    """A trace, or a load, that is to be simulated is wrong."""

    exit_code = 2


class JobError(CotenantError):
    """A job can't be taken further."""


class RequestRefused(JobError):
    """A request about jobs, batches or files is wrong. `status`, `param` and `code` are for the reply."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class MalformedJob(JobError):
    """The message is not a job, and no repetition makes it one."""


class IdentityConflict(JobError):
    """Another job, with another body, already has this tenant, batch and custom_id."""


class SourceUnavailable(JobError):
    """Pub/Sub did not answer. Nothing is lost; the call may be repeated."""


class StoreUnavailable(JobError):
    """The result store did not answer. Nothing is lost; the call may be repeated."""


class OutboundError(CotenantError):
    """An HTTP call by somebody's URL came to nothing. The text names the URL's host at the most, never the URL."""


class UrlInvalid(OutboundError):
    """The URL is none that is ever called: by its syntax, its scheme, or because it carries a user name."""


class UrlRefused(OutboundError):
    """The URL leads where no call may go: to another port, or to an address that is not on the public internet."""


class Unreachable(OutboundError):
    """The URL's host has no address, does not take the call, or does not speak HTTP. It may at another time."""


class TimedOut(Unreachable):
    """The URL's host took too long."""


class ClusterError(CotenantError):
    """Kubernetes did not do what was asked."""


class NotConnected(ClusterError):
    """No cluster is reached: no kubeconfig, no such context, no login, or no route."""


class ClusterBusy(ClusterError):
    """The API server did not answer, or answered 429 or 5xx, however often it was asked."""


class NotPermitted(ClusterError):
    """The API server knows who asks and does not let them."""


class KindMissing(ClusterError):
    """The cluster knows no objects of that kind."""


class NamespaceMissing(ClusterError):
    """The namespace is not there, or is being deleted."""


class ManifestRefused(ClusterError):
    """An object is wrong, by the API server's schema or by a policy of the cluster."""

    exit_code = 2


class FieldsOwned(ClusterError):
    """Another field manager set fields of the object to other values. Nothing was changed.

    `owners` has the fields by manager.
    """

    def __init__(self, message: str, owners: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.owners = owners


class Changed(ClusterError):
    """The object is there already, or is another than was read. The call may be made anew from what is there now."""


class Gone(ClusterError):
    """The version is too old to watch from, or to go on listing from."""


class NoRevision(ClusterError):
    """There is nothing to go back to."""


class RolloutFailed(ClusterError):
    """Everything was applied and did not become healthy. It stays applied."""


class SignatureInvalid(CotenantError):
    """What claims to be a webhook lacks a signature by a known secret, or is too old or too new."""


class CallError(CotenantError):
    """A call to a workload ended without a reply."""


class UnknownWorkload(CallError):
    """No workload serves this route, model or template."""


class Overloaded(CallError):
    """The workload's queue is full. `retry_after_s` is when to come back."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(CallError):
    """The caller's deadline passed before the reply; the work was cancelled."""


class ReplicaDied(CallError):
    """The replica died with the call in it. It left no result, so the call may be repeated."""


class BudgetExceeded(CallError):
    """The replica went past its VRAM budget and was stopped. The same call would do it again."""


class WorkloadUnavailable(CallError):
    """No replica is ready to take the call, or the engine failed in a way that is not the caller's."""
