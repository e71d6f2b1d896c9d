"""``python -m nepa_jax`` is the command ``nepa-jax``."""

from nepa_jax.cli import main

if __name__ == "__main__":
    main()
