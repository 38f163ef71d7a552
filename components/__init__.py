"""Kubeflow components: one folder a step, each a body of a few lines around a function of `llm_detox`."""
