"""A platform in simulated time: the real scaling policy, against requests, nodes and starts that are only reckoned."""
