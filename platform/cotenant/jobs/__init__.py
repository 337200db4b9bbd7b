"""Batch jobs: from a message to a visible result, exactly one for each job. No Ray.

    desk (files, batches, single jobs) ──► queue (Pub/Sub or in memory) ──► ingress ──► calls.Backend
                                             ▲                              │  ▲
                                   clerk ────┘            settlement: how   │  │ lookup: a redelivery finds the
                                   batches, webhooks      a message ends    ▼  │ result and does no work
                                                          store (put-if-absent) ──► result message ──► ack

`model` says what a job is. `queue.pubsub` and its neighbours are the only files that know Pub/Sub, `store.objects` the
only one that knows object storage.
"""
