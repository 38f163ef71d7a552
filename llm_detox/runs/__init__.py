"""What steps leave behind and hand on: folders with manifests, and the pipeline around a step."""
