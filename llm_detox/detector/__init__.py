"""Where a text is toxic or unsafe: spans of it, for whoever stands before or behind a model; and the detector API."""
