"""Conversations: a toxic request is not rewritten but refused, with the answer that the recipe gives.

The records keep the audit trail of the other methods: `original` is the data's own answer, `text` the one to train on.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_detox.data.records import Record
from llm_detox.rephrase.base import Scorer


class Refusals:
    """Answers every toxic request of a data set with a refusal.

    Args:
        scorer: reads requests that have no label.
        threshold: requests at or over it are toxic.
        refusal: the answer to them; None keeps every answer.
    """

    def __init__(self, scorer: Scorer, threshold: float, refusal: str | None) -> None:
        self._scorer, self._threshold, self._refusal = scorer, threshold, refusal

    def run(self, records: Sequence[Record]) -> list[Record]:
        """The audit trail of the records (requests in `text`, with `messages` or `completion`), in their order."""
        open_cases = [record for record in records if record.get("toxic") is None] if self._refusal else []
        scores = dict(zip((record["id"] for record in open_cases),
                          self._scorer.score([str(record["text"]) for record in open_cases]), strict=True))
        return [self._outcome(record, scores.get(record["id"])) for record in records]

    def _outcome(self, record: Record, score: float | None) -> Record:
        toxic = score is None or score >= self._threshold if record.get("toxic") is None else bool(record["toxic"])
        chat = "messages" in record
        own = str(record["messages"][-1]["content"] if chat else record["completion"])
        rewritten = self._refusal is not None and toxic
        answer = self._refusal if self._refusal is not None and toxic else own
        lead = own[: len(own) - len(own.lstrip())]
        kept = {"messages": [*record["messages"][:-1], {**record["messages"][-1], "content": answer}]} if chat \
            else {"prompt": record["prompt"], "completion": lead + answer.strip()}
        reason = "the request is toxic" if rewritten else "the request is not toxic" if self._refusal else \
            "a conversation; the recipe gives no refusal"
        return {"id": record["id"], "text": answer.strip(), "original": own.strip(),
                "action": "rewritten" if rewritten else "kept", "method": "refusal" if rewritten else None,
                "scores": {"request_toxicity": score}, "reason": reason, **kept}
