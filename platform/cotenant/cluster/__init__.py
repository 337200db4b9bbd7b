"""A Kubernetes cluster as a place to run an environment: apply it, watch it come up, go back.

`edge.Cluster` is all that the rest knows of Kubernetes. `kube` connects to a real one, `memory` is its shipped twin;
both keep the same promises. What is decided (order, diff, verdict, history) is decided by pure functions over plain
objects, as the API server gives them.
"""
