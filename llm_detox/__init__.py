"""Make a language model less toxic, measure that it became so, and serve it."""

__version__ = "0.1.0"
