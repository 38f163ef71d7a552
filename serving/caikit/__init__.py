"""The Caikit side of serving: its configuration, and the program that starts it."""
