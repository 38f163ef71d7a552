"""What works on records: the chain for texts, a gate on absolute toxicity, then one method after the other until a
candidate is accepted; for conversations the refusal that the recipe gives in answer to a toxic request.

Both leave the same audit trail: `original` is the data's own text or answer, `text` the one to train on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm_detox.data.records import Record
from llm_detox.rephrase.acceptance import Acceptance, Candidate, Method, Scorer
from llm_detox.scoring.languages import LanguageCheck


class Chain:
    """Gate, methods and acceptance.

    Args:
        scorer: its score decides what is rewritten; a clean text costs this one call and is never touched.
        threshold: texts at or over it are toxic.
        methods: name -> method, tried in this order.
        acceptance: decides between candidates.
        keep_refused: what no method can rewrite stays as it is, instead of being dropped.
        languages: texts in other languages are left as they are, and are not scored.
    """

    def __init__(self, scorer: Scorer, threshold: float, methods: Iterable[Method], acceptance: Acceptance, *,
                 keep_refused: bool = False, languages: LanguageCheck | None = None) -> None:
        self._scorer = scorer
        self._threshold = threshold
        self._methods = list(methods)
        self._acceptance = acceptance
        self._keep_refused = keep_refused
        self._languages = languages or LanguageCheck(())

    def run(self, records: Sequence[Record]) -> list[Record]:
        """The audit trail of the records `{"id", "text"}`, one for each, in their order."""
        foreign = [self._languages.foreign(str(record["text"])) for record in records]
        own = [record for record, language in zip(records, foreign, strict=True) if language is None]
        done = iter(self.run_scored(own, self._scorer.score([str(record["text"]) for record in own])))
        return [_left(record, language) if language else next(done)
                for record, language in zip(records, foreign, strict=True)]

    def run_scored(self, records: Sequence[Record], scores: Sequence[float | None]) -> list[Record]:
        """As `run`, of records whose scores are known."""
        texts = [str(record["text"]) for record in records]
        toxic = [i for i, score in enumerate(scores) if score is not None and score >= self._threshold]
        chosen, tried = self._rewrite({i: texts[i] for i in toxic})
        return [
            {"id": record["id"], **self._outcome(texts[i], scores[i], chosen.get(i), tried.get(i))}
            for i, record in enumerate(records)
        ]

    def _rewrite(self, texts: dict[int, str]) -> tuple[dict[int, tuple[str, Candidate]], dict[int, list[Record]]]:
        chosen: dict[int, tuple[str, Candidate]] = {}
        tried: dict[int, list[Record]] = {i: [] for i in texts}
        for method in self._methods:
            pending = [i for i in texts if i not in chosen]
            if not pending:
                break
            originals = [texts[i] for i in pending]
            judged = self._acceptance.judge(originals, method.candidates(originals))
            for i, group in zip(pending, judged, strict=True):
                accepted = [one for one in group if not one.refused]
                tried[i].append(_attempt(method.name, group))
                if accepted:
                    chosen[i] = (method.name, accepted[0])
        return chosen, tried

    def _outcome(self, text: str, score: float | None, chosen: tuple[str, Candidate] | None,
                 tried: list[Record] | None) -> Record:
        scores: dict[str, float | None] = {"toxicity_before": score}
        if tried is None and score is None:
            return _record("", text, "dropped", None, scores, "it could not be scored")
        if tried is None:
            return _record(text, text, "kept", None, {**scores, "toxicity_after": score}, "not toxic")
        if chosen:
            method, one = chosen
            scores |= {"toxicity_after": one.toxicity, "similarity": one.similarity,
                       "perplexity_before": one.perplexity_before, "perplexity_after": one.perplexity}
            return _record(one.text, text, "rewritten", method, scores, "accepted", tried)
        if self._keep_refused:
            return _record(text, text, "kept", None, {**scores, "toxicity_after": score},
                           "no rewrite was accepted; the recipe keeps such text", tried)
        return _record("", text, "dropped", None, scores, "no rewrite was accepted", tried)


def _left(record: Record, language: str) -> Record:
    text = str(record["text"])
    left = _record(text, text, "kept", None, {"toxicity_before": None}, f"in another language ({language})")
    return {"id": record["id"], **left}


def _record(text: str, original: str, action: str, method: str | None, scores: dict[str, float | None], reason: str,
            tried: list[Record] | None = None) -> Record:
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in scores.items()}
    record = {"text": text, "original": original, "action": action, "method": method, "scores": rounded,
              "reason": reason}
    return {**record, "tried": tried} if tried else record


def _attempt(method: str, group: Sequence[Candidate]) -> Record:
    refusals: dict[str, int] = {}
    for one in group:
        if one.refused:
            refusals[one.refused] = refusals.get(one.refused, 0) + 1
    return {"method": method, "candidates": len(group), "refused": refusals}


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
