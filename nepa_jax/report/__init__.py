"""One page that tells a run's whole story, or several runs' beside each other."""
