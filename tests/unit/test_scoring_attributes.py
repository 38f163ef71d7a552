"""`train-scorer`: the ridge is the ridge, the split keeps records whole, the saved scorer is the fitted one."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.data.records import hash_fraction
from llm_detox.errors import DetoxError
from llm_detox.recipe import Scorer
from llm_detox.scoring import attributes as module
from llm_detox.scoring.attributes import Ridge, fit_attributes, load_attribute_scorer
from llm_detox.scoring.features import encode, features
from llm_detox.scoring.toxicity import load_scorer
from llm_detox.scoring.train import calibration_error, scored_texts, train_scorer

WORDS = ["day", "park", "river", "city", "train", "friend", "walk", "house", "tree", "song", "book", "table"]


def make_records(path: Path, count: int = 300) -> Path:
    """Toxicity follows the word `idiot`, threat the word `kill`."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record: dict[str, Any] = {"filename": f"{number}.txt"}
            for part in ("prompt", "continuation"):
                words = [*random.choice(WORDS, 5), str(number)]
                toxic, threat = random.random() < 0.4, random.random() < 0.3
                words += ["idiot"] * toxic + ["kill"] * threat
                random.shuffle(words)
                record[part] = {"text": " ".join(words), "toxicity": 0.8 if toxic else 0.1,
                                "threat": 0.7 if threat else 0.05}
            file.write(json.dumps(record) + "\n")
    return path


def save_labels(path: Path) -> Path:
    rows = [f"{int(n % 3 == 0)},{'what an idiot' if n % 3 == 0 else 'a fine friend'} {n}" for n in range(60)]
    path.write_text("is_offensive,text\n" + "\n".join(rows), "utf-8")
    return path


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    train_scorer(make_records(tmp_path / "records.jsonl"), output=tmp_path / "scorer",
                 labelled=str(save_labels(tmp_path / "labels.csv")))
    return tmp_path / "scorer"


def test_each_attribute_is_learnt_and_measured_on_held_out_texts(trained: Path) -> None:
    result = json.loads((trained / "manifest.json").read_text())["result"]
    assert set(result["attributes"]) == {"toxicity", "threat"}
    for row in result["attributes"].values():
        assert row["auc"] > 0.97
        assert row["calibration_error"] < 0.06
        assert row["positives"] >= 20
    assert result["mean_auc"] > 0.97


def test_the_saved_scorer_is_a_scorer_like_the_others(trained: Path) -> None:
    scorer = load_scorer(Scorer(kind="ngram", source=str(trained), attribute="threat"))
    both = scorer.score_attributes(["day park idiot river", "they kill the song", ""])
    assert both[2] is None
    first, second = both[0] or {}, both[1] or {}
    assert first["toxicity"] > 0.5 > first["threat"]
    assert second["threat"] > 0.5 > second["toxicity"]
    assert scorer.score(["they kill the song"]) == [pytest.approx(second["threat"])]
    assert scorer.fingerprint == json.loads((trained / "manifest.json").read_text())["result"]["fingerprint"]


def test_other_users_can_read_the_weights_and_the_card_names_the_measures(trained: Path) -> None:
    assert (trained / "scorer.safetensors").stat().st_mode & stat.S_IROTH
    card = (trained / "README.md").read_text("utf-8")
    assert "| threat |" in card
    assert "## Limitations" in card


def test_the_weights_solve_the_ridge_equations() -> None:
    texts = ["day idiot", "park day", "idiot park river", "river walk", "kill walk day", "kill idiot"]
    targets = np.random.default_rng(1).random((6, 2))
    how = Ridge(tolerance=1e-10)
    model = fit_attributes(texts, targets, ("toxicity", "threat"), None, how)
    found = features(encode(texts))
    inputs = module._normalised(module._counts(found.bucket, found.row, found.rows), model.idf).toarray()
    whole = np.concatenate([inputs, np.ones((6, 1))], axis=1)  # without labelled text the base input is zero
    centred = targets - targets.mean(axis=0)
    expected = whole.T @ np.linalg.solve(whole @ whole.T + how.penalty * np.eye(6), centred)
    np.testing.assert_allclose(model.weights, expected[:-1], atol=1e-5)
    np.testing.assert_allclose(model.line[0], expected[-1] + targets.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model.raw(texts), whole @ expected + targets.mean(axis=0), atol=1e-5)


def test_a_prompt_stays_with_its_continuation_in_the_split(tmp_path: Path) -> None:
    texts, _, names, place = scored_texts(make_records(tmp_path / "records.jsonl", 20))
    assert len(texts) == 40
    assert names == ["toxicity", "threat"]
    assert (place[::2] == place[1::2]).all()
    assert len(set(place)) == 20
    assert place[0] == hash_fraction(" ".join(texts[:2]), "train-scorer")


def test_texts_without_all_scores_are_left_out_and_plain_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "a", "toxicity": 0.5}\n{"text": "b", "toxicity": null}\n{"text": "c"}\n', "utf-8")
    texts, scores, names, _ = scored_texts(path)
    assert (texts, scores.tolist(), names) == (["a"], [[0.5]], ["toxicity"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_scorer_that_is_right_has_no_calibration_error(values: list[float]) -> None:
    scores = np.array(values)
    assert calibration_error(scores, scores) == pytest.approx(0, abs=1e-9)
    shifted = calibration_error(scores + 0.1, scores)
    assert shifted == pytest.approx(0.1)


@pytest.mark.parametrize(("content", "problem"), [
    ('{"text": "a"}\n', "no text carries scores"), ('{"text": "a", "toxicity": 0.2}\n', "only 1 texts")])
def test_too_little_to_learn_from_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(DetoxError, match=problem):
        train_scorer(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_scorer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scorer.safetensors").write_bytes(b"garbage")
    with pytest.raises(DetoxError, match="not a trained attribute scorer"):
        load_attribute_scorer(tmp_path)


def test_real_perspective_scores_are_learnt(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packaged comments; with them TOXICITY reaches .934 and the mean .930 on the same split."""
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    result = train_scorer(shared_data / "rtp_dev.jsonl", output=tmp_path / "out",
                          labelled=str(save_labels(tmp_path / "labels.csv")))
    assert result["attributes"]["toxicity"]["auc"] >= 0.88
    assert result["mean_auc"] >= 0.90
    assert max(row["calibration_error"] for row in result["attributes"].values()) <= 0.05
