"""The ingress: pulls what slots can take, has it done, and settles every message."""
