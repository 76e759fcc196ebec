"""wmact: language-model agents that learn their environment's model by acting in it."""

from importlib.metadata import version

__version__ = version("wmact")
