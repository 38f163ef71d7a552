"""Serving a published model: on this machine, or on KServe."""
