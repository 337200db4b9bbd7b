"""Batch jobs: from a message to a visible result, exactly one for each job. No Ray.

    source (Pub/Sub or in memory) ──► pump ──► calls.Backend
                                       │  ▲
                      settlement: how  │  │ lookup: a redelivery finds the result and does no work
                      a message ends   ▼  │
                                 store (put-if-absent) ──► result message ──► ack

`model`, `settlement` and `leases` are pure. `pubsub` is the only file that knows Pub/Sub, `store` the only one
that knows object storage.
"""
