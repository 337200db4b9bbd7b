"""What is generated from the plan for somebody else to run: the Serve config."""
