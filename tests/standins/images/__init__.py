"""Stand-ins for the programs of images that cannot run here."""
