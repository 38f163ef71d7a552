"""The KServe target: a published model behind an InferenceService."""
