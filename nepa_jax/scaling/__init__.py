"""Scaling laws: from points to a law with its intervals, figures and a report."""
