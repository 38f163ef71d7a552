"""Stand-ins for what cannot run here, each measured against recordings of the real thing."""
