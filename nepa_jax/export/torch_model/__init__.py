"""What needs PyTorch: the model shipped in exported folders, and what runs them."""
