"""A recipe tried out on any machine: its own settings, with model and data swapped for tiny ones."""
