"""Kubernetes objects of one environment, as plain data: a RayService and what it needs around it.

Pure. All are derived from the platform file and its plan, so worker groups, node pools, shares and the Serve config
can't disagree. `environment` puts them together.
"""
