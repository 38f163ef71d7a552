"""`python -m llm_detox.cli`, the same as `llm-detox`."""

from llm_detox.cli import main

main()
