"""What GPUs hold: the catalogue of accelerators and machines, the plan, the probe."""
