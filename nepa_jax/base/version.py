"""The version of this code, said once: wheels, checkpoints and the command line read it here.

Not what is installed: code that runs from a folder beside an installed one is its own version.
"""

__version__ = "0.1.0"
