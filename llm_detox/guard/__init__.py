"""What an application puts before or behind a model, so that nobody sees a toxic text."""
