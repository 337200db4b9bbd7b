"""The GPU agent: one a node, it lends GPU memory to replicas, measures what they hold, and stops who holds too much.

It needs no Ray: whoever hosts it passes in the probe and what is to happen when a replica is stopped.
"""
