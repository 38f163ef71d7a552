"""The images that the components run in: one place, one environment variable each to replace it when compiling."""

import os

from llm_detox.recipe.cluster import IMAGE_VARIABLE, WORKBENCH_IMAGE

WORKBENCH = os.environ.get(IMAGE_VARIABLE, WORKBENCH_IMAGE)
