"""Kubeflow pipelines: the graph of the components, and how to run it here or in a cluster."""
