"""What needs PyTorch: the model shipped in exported folders, and what reads and runs files."""
