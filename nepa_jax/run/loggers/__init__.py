"""Tools that show runs, each a copy of ``metrics.jsonl``."""
