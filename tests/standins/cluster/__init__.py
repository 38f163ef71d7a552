"""Stand-ins that work against a real API server: KServe, OpenShift's service CA, the Trainer, kubelets, a network.

Kubernetes' own controllers do the rest: ReplicaSets, pods, endpoints, garbage collection.
"""
