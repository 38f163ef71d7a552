"""Stand-ins for KServe's webhooks and controller (0.20.0, and Open Data Hub's 3.5), measured against recordings.

Pure functions on YAML values. What was never recorded is refused with `Unmeasured`, so that no test believes a guess.
"""
