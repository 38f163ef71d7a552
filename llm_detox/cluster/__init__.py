"""The one way to a Kubernetes cluster: the API calls, and training jobs."""
