"""One file per pretraining method; a new one is a new file and a config."""
