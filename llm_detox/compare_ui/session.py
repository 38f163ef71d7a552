"""What one visitor has set and asked: the settings, and the history."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llm_detox.compare_ui.answering import Answer
from llm_detox.compare_ui.reading import Reading

KEPT = 50  # exchanges; older ones are forgotten
_numbers = itertools.count(1)


@dataclass
class Settings:
    """What the page's fields hold; a field that is being edited may hold None."""

    max_new_tokens: float | None = 60
    sampling: bool = False
    temperature: float | None = 1.0
    top_p: float | None = 0.9
    seed: float | None = 42
    threshold: float | None = 0.5

    def problem(self) -> str | None:
        """What must be changed before a prompt can be asked."""
        bounds: list[tuple[str, float | None, float, float]] = [
            ("new tokens", self.max_new_tokens, 1, 4096), ("veil from", self.threshold, 0, 1)]
        if self.sampling:
            bounds += [("temperature", self.temperature, 0.01, 10), ("top p", self.top_p, 0.01, 1),
                       ("seed", self.seed, 0, 2**31 - 1)]
        for name, value, low, high in bounds:
            if value is None or not low <= value <= high:
                return f"{name}: give a number from {low:g} to {high:g}"
        return None

    def parameters(self) -> dict[str, Any]:
        """For the models, by their names in `llm_detox.client.types.Parameters`. Call it where there is no problem."""
        tokens = {"max_new_tokens": int(self.max_new_tokens or 0)}
        if not self.sampling:
            return {**tokens, "decoding_method": "GREEDY"}
        return {**tokens, "decoding_method": "SAMPLING", "temperature": self.temperature, "top_p": self.top_p,
                "seed": int(self.seed or 0)}

    @property
    def veil(self) -> float:
        """The toxicity from which on a text is veiled; with an empty field all text is."""
        return self.threshold or 0.0


@dataclass
class Exchange:
    """A prompt and what the sides answered.

    Attributes:
        prompt_reading: of the prompt itself, which may be toxic too.
        answers: in the order of the sides.
    """

    prompt: str
    parameters: dict[str, Any]
    prompt_reading: Reading
    answers: list[Answer]
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass
class Session:
    """Settings and history, newest exchange last."""

    settings: Settings
    history: list[Exchange] = field(default_factory=list)

    def keep(self, exchange: Exchange) -> None:
        self.history = [*self.history, exchange][-KEPT:]

    def find(self, number: int) -> Exchange | None:
        return next((one for one in self.history if one.number == number), None)


def as_json_lines(history: Sequence[Exchange], names: Sequence[str]) -> str:
    """The history as JSON lines, for a file: prompt, parameters, and each side's text, scores and times."""
    lines = []
    for one in history:
        answers = {name: {**asdict(answer), "reading": None, "scores": answer.reading.scores}
                   for name, answer in zip(names, one.answers, strict=True)}
        for answer in answers.values():
            del answer["reading"]
        lines.append(json.dumps({"prompt": one.prompt, "parameters": one.parameters, "answers": answers},
                                ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)
