"""How many replicas a workload needs, how warm, and how many nodes to have ready: decisions alone, no clock, no I/O.

The same functions decide in a running platform and in the simulator.
"""
