"""What Google Cloud is told of an environment: node pools, compute classes, and the script that sets them up."""
