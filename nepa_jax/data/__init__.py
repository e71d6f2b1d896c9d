"""Records on disk, and batches as a function of the step."""
