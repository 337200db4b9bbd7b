"""The queue's edge: lanes, sources, Pub/Sub and its twin, what is to be there, and what was given up."""
