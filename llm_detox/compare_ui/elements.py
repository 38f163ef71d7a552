"""The page's own components. Their templates put every text in as text, never as HTML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui


class AnswerCard(ui.element, component="answer.vue"):
    """A side's card; `on_unveil` is told whether its veiled text shall be shown."""

    def __init__(self, heading: str, where: str, colour: str, view: dict[str, Any],
                 on_unveil: Callable[[bool], None]) -> None:
        super().__init__()
        self._props.update(heading=heading, where=where, colour=colour, view=view)
        self.on("unveil", lambda event: on_unveil(bool(event.args)))

    def show(self, view: dict[str, Any]) -> None:
        self._props["view"] = view
        self.update()


class HistoryList(ui.element, component="history.vue"):
    """The exchanges so far; `on_reopen` gets the number of the one that is chosen."""

    def __init__(self, on_reopen: Callable[[int], None]) -> None:
        super().__init__()
        self._props.update(entries=[], open=0)
        self.on("reopen", lambda event: on_reopen(int(event.args)))

    def show(self, entries: list[dict[str, Any]], reopened: int) -> None:
        """`reopened` is the number of the exchange that the cards show."""
        self._props.update(entries=entries, open=reopened)
        self.update()
