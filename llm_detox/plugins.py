"""Scorers, rephrasers and engines of other installed packages, which a recipe or an option names `plugin:NAME`.

They are entry points: a recipe can name only what somebody has installed beside the library, and no code comes with
data. `docs/extending.md` shows one of each kind.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Literal

from llm_detox.errors import DetoxError

PREFIX = "plugin:"
Group = Literal["llm_detox.scorers", "llm_detox.rephrasers", "llm_detox.engines", "llm_detox.backends"]


def load_plugin(group: Group, name: str) -> Any:
    """What a package has put under the name, a factory.

    Args:
        group: of the entry points.
        name: with or without `plugin:`.

    Raises:
        DetoxError: no installed package has it, or it cannot be imported.
    """
    wanted = name.removeprefix(PREFIX)
    there = {point.name: point for point in entry_points(group=group)}
    if wanted not in there:
        known = ", ".join(sorted(there)) or "none"
        raise DetoxError(f"no installed package provides {wanted!r} ({group}; there: {known})",
                         place=f"{PREFIX}{wanted}",
                         remedy="install the package into this environment; see docs/extending.md")
    try:
        return there[wanted].load()
    except (ImportError, AttributeError) as error:
        raise DetoxError(f"the plugin cannot be imported ({type(error).__name__}: {error})", place=f"{PREFIX}{wanted}",
                         remedy=f"check {there[wanted].value} in its package") from error
