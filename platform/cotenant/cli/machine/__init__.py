"""This machine as a place to run a platform: its Ray, its Pub/Sub emulator, and the record of what was started."""
