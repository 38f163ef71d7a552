"""Text that is ready to be sent, and where a stop sequence ends it."""

from __future__ import annotations


class StopText:
    """The text of one continuation, watched for stop sequences.

    A stop sequence may begin in one token and end in another. When it is not to be shown, the end of the text that
    could become one is held back until it is clear.

    Args:
        sequences: the stop sequences; the first of them to begin in the text wins.
        include: whether a matched sequence stays in the text.
    """

    def __init__(self, sequences: tuple[str, ...], *, include: bool) -> None:
        self._sequences, self._include = sequences, include
        self.text = ""
        self._sent = 0

    def add(self, piece: str, *, match: bool) -> str | None:
        """Append a piece; the stop sequence that it completes, after which the text is final, or None."""
        before = len(self.text)
        self.text += piece
        if not (piece and match and self._sequences):
            return None
        found = [(position, sequence) for sequence in self._sequences
                 if (position := self.text.find(sequence, max(0, before - len(sequence) + 1))) >= 0]
        if not found:
            return None
        position, sequence = min(found, key=lambda item: item[0])
        self.text = self.text[: position + (len(sequence) if self._include else 0)]
        return sequence

    def ready(self, *, final: bool) -> str:
        """The text not yet handed out that can be: all of it when final."""
        end = len(self.text) if final or self._include else len(self.text) - self._held()
        piece = self.text[self._sent:end]
        self._sent = max(end, self._sent)
        return piece

    def _held(self) -> int:
        """How many characters at the end could be the beginning of a stop sequence."""
        longest = 0
        for sequence in self._sequences:
            for size in range(min(len(sequence) - 1, len(self.text) - self._sent), longest, -1):
                if sequence.startswith(self.text[-size:]):
                    longest = size
                    break
        return longest
