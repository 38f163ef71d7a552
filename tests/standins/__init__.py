"""Stand-ins for what cannot run here, each measured against recordings of the real thing."""


class Unmeasured(Exception):
    """What the real thing makes of this was not recorded, so the stand-in refuses it in place of guessing."""
