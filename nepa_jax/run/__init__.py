"""What surrounds the loop of a run."""
