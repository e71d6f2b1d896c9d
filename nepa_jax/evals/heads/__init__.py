"""Heads that are trained on frozen features: a grid of them, their rows, their training, what is told of it."""
