"""The version of this code, said once: wheels, checkpoints and the command line read it here.

Not what is installed: code that runs from a folder beside an installed one has a version of its own.
"""

__version__ = "0.1.0"

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy")


def versions() -> str:
    """Ours, Python's and those of the libraries that compute, read and save; devices are not touched."""
    import platform
    from importlib.metadata import version

    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    python = f"python {platform.python_version()} on {platform.platform()}"
    return f"nepa-jax {__version__}\n{python}\n{libraries}"
