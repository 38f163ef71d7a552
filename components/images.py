"""The images that the components run in: one place, one environment variable each to replace it when compiling."""

import os

WORKBENCH = os.environ.get("LLM_DETOX_WORKBENCH_IMAGE", "quay.io/llm-detox/workbench-python:0.1.0")
