"""`train-scorer`: the ridge is the ridge, the split keeps records whole, the saved scorer is the fitted one."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save_file

from llm_detox.data.records import hash_fraction
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.scorers import LABELLED_TEXT, ScorerSection, ScoringSection
from llm_detox.scoring import attributes as module
from llm_detox.scoring.attributes import Ridge, fit_attributes, load_attribute_scorer
from llm_detox.scoring.features import BUCKETS, calibration_error, encode, evidence, features
from llm_detox.scoring.load import check_kept_apart, load_scorer
from llm_detox.scoring.text_vectors import PieceEncoder, Vectors, landmarks
from llm_detox.scoring.train_scorer import scored_texts, train_scorer

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DETOX_CACHE", str(root / "cache"))
        train_scorer(make_records(root / "records.jsonl"), output=root / "scorer",
                     labelled=str(save_labels(root / "labels.csv")))
    return root / "scorer"


def test_each_attribute_is_learnt_and_measured_on_held_out_texts(trained: Path) -> None:
    result = json.loads((trained / "manifest.json").read_text())["result"]
    assert set(result["attributes"]) == {"toxicity", "threat"}
    for row in result["attributes"].values():
        assert row["auc"] > 0.97
        assert row["calibration_error"] < 0.06
        assert row["positives"] >= 20
    assert result["mean_auc"] > 0.97


def test_the_saved_scorer_is_a_scorer_like_the_others(trained: Path) -> None:
    scorer = load_scorer(ScorerSection(kind="attributes", source=str(trained), attribute="threat"))
    both = scorer.score_attributes(["day park idiot river", "they kill the song", ""])
    assert both[2] is None
    first, second = both[0] or {}, both[1] or {}
    assert first["toxicity"] > 0.5 > first["threat"]
    assert second["threat"] > 0.5 > second["toxicity"]
    assert scorer.score(["they kill the song"]) == [pytest.approx(second["threat"])]
    assert scorer.fingerprint == json.loads((trained / "manifest.json").read_text())["result"]["fingerprint"]


def test_published_recipes_name_such_a_folder_by_the_kind_ngram_and_are_told_the_other(
        trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, scorer = (load_scorer(ScorerSection(kind=kind, source=str(trained))) for kind in ("ngram", "attributes"))
    assert (older.name, older.fingerprint) == (scorer.name, scorer.fingerprint)
    assert capsys.readouterr().err.count("write `kind: attributes`") == 1


def test_an_attribute_scorer_without_a_folder_is_refused() -> None:
    with pytest.raises(DetoxError, match="`attributes` needs a source"):
        load_scorer(ScorerSection(kind="attributes"))


def test_other_users_can_read_the_weights_and_the_card_names_the_measures(trained: Path) -> None:
    assert (trained / "scorer.safetensors").stat().st_mode & stat.S_IROTH
    card = (trained / "README.md").read_text("utf-8")
    assert "| threat |" in card
    assert "## Limitations" in card


def test_the_weights_solve_the_ridge_equations() -> None:
    texts = ["day idiot", "park day", "idiot park river", "river walk", "kill walk day", "kill idiot"]
    targets = np.random.default_rng(1).random((6, 2))
    ridge = Ridge(tolerance=1e-10)
    model = fit_attributes(texts, targets, ("toxicity", "threat"), None, ridge=ridge)
    encoded = encode(texts)
    found = features(encoded)
    inputs = module._normalised(module._counts(found), model.idf).toarray()
    dense = model._dense(texts, encoded, found)
    whole = np.concatenate([inputs, dense], axis=1).astype(np.float64)
    centred = targets - targets.mean(axis=0)
    expected = whole.T @ np.linalg.solve(whole @ whole.T + ridge.penalty * np.eye(6), centred)
    np.testing.assert_allclose(model.weights, expected[:inputs.shape[1]], atol=1e-5)
    np.testing.assert_allclose(model.raw(texts), whole @ expected + targets.mean(axis=0), atol=1e-5)


class Fixed:
    """An encoder that knows two subjects: the first axis for one, the second for the other."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([[1.0, 0.1] if "cat" in text or "dog" in text else [0.1, 1.0] for text in texts], np.float32)


def test_what_a_text_is_about_carries_over_to_words_that_no_score_was_stored_for() -> None:
    texts = [f"cat {word}" for word in WORDS] + [f"stone {word}" for word in WORDS]
    scores = np.array([[0.9]] * len(WORDS) + [[0.1]] * len(WORDS))
    model = fit_attributes(texts, scores, ("toxicity",), None, Fixed())
    animal, mineral = model.raw(["dog", "gravel"])[:, 0]
    assert animal > mineral + 0.2
    blind = fit_attributes(texts, scores, ("toxicity",), None)
    assert abs(np.diff(blind.raw(["dog", "gravel"])[:, 0])[0]) < 0.2


def test_word_pieces_are_averaged_with_rare_ones_weighing_more() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "##b": 3}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.eye(4, dtype=np.float32)
    encoder = PieceEncoder(raw.to_str(), vectors).fit(["a", "a ab", "a"])
    weights = encoder.idf
    assert weights[1] == pytest.approx(math.log(4 / 3))
    assert weights[3] == pytest.approx(math.log(4))
    (found,) = encoder.encode(["A ab"])
    expected = np.array([0, 2 * weights[1], 0, weights[3]]) / (2 * weights[1] + weights[3])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(encoder.encode([" "]), np.zeros((1, 4)))


def test_products_of_landmark_features_are_the_gaussian_kernel() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    found = landmarks(vectors, count=40, gamma=2.0).of(vectors)
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, np.exp(2 * (centred @ centred.T - 1)), atol=0.01)
    assert landmarks(vectors, count=7, gamma=2.0).of(vectors).shape == (40, 7)


def test_evidence_of_one_insult_stands_out_of_a_long_harmless_text() -> None:
    texts = ["idiot", "the park by the river is a fine place to walk idiot with a friend", "the park"]
    encoded = encode(texts)
    found = features(encoded)
    weights = np.full(BUCKETS, -0.01, dtype=np.float32)
    only = features(encode(["idiot"]))
    weights[only.bucket] = 1.0
    says = evidence(encoded, found, weights)
    np.testing.assert_allclose(says[:, 0], found.logits(weights), atol=1e-6)
    np.testing.assert_allclose(says[:, 1] + says[:, 2], says[:, 0], atol=1e-9)
    assert says[1, 3] > 0 > says[2, 3]
    assert (says[:, 4] >= np.maximum(says[:, 3], 0) - 1e-9).all()
    assert evidence(encode([""]), features(encode([""])), weights).tolist() == [[0.0] * 5]


def test_a_prompt_stays_with_its_continuation_in_the_split(tmp_path: Path) -> None:
    scored = scored_texts(make_records(tmp_path / "records.jsonl", 20))
    texts, place = scored.texts, scored.places
    assert len(texts) == 40
    assert scored.attributes == ["toxicity", "threat"]
    assert (place[::2] == place[1::2]).all()
    assert len(set(place)) == 20
    assert place[0] == hash_fraction(" ".join(texts[:2]), "train-scorer")


def test_texts_without_all_scores_are_left_out_and_plain_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "a", "toxicity": 0.5}\n{"text": "b", "toxicity": null}\n{"text": "c"}\n', "utf-8")
    scored = scored_texts(path)
    assert (scored.texts, scored.scores.tolist(), scored.attributes) == (["a"], [[0.5]], ["toxicity"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_scorer_that_is_right_has_no_calibration_error(values: list[float]) -> None:
    scores = np.array(values)
    assert calibration_error(scores, scores) == pytest.approx(0, abs=1e-9)
    shifted = calibration_error(scores + 0.1, scores)
    assert shifted == pytest.approx(0.1)


@pytest.mark.parametrize(("content", "problem"), [
    ('{"text": "a"}\n', "no text has scores"), ('{"text": "a", "toxicity": 0.2}\n', "only 1 texts")])
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


@pytest.mark.slow
def test_real_perspective_scores_are_learnt(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packaged comments; with them TOXICITY reaches .934 and the mean .930 on the same split."""
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    result = train_scorer(shared_data / "rtp_dev.jsonl", output=tmp_path / "out",
                          labelled=str(save_labels(tmp_path / "labels.csv")))
    assert result.attributes["toxicity"].auc >= 0.88
    assert (result.mean_auc or 0) >= 0.90
    assert max(row.calibration_error for row in result.attributes.values()) <= 0.05


# --- what is in it -----------------------------------------------------------------------------------------------


def scoring(training: dict[str, Any], judging: dict[str, Any]) -> ScoringSection:
    return ScoringSection.model_validate({"training": training, "judging": judging})


@pytest.mark.parametrize("kind", ["attributes", "ngram"])
def test_a_recipe_that_trains_with_a_scorer_inside_the_one_that_judges_is_refused(
        trained: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Whichever of the two is the trained one, and however the paths are written."""
    monkeypatch.chdir(trained.parent)
    inside, whole = {"kind": "ngram", "source": "labels.csv"}, {"kind": kind, "source": str(trained)}
    ensemble = {"kind": "ensemble", "members": [{"kind": "bilstm"}, {"kind": kind, "source": "scorer"}]}
    for pair in ((inside, whole), (whole, inside), (inside, ensemble)):
        with pytest.raises(ValidationError, match=r"both are or contain: ngram \(.*labels.csv\)"):
            scoring(*pair)
    assert scoring({"kind": "ngram"}, whole)
    assert scoring({"kind": "bilstm"}, whole)


@pytest.mark.parametrize("source", ["scorer", "s3://bucket/scorer"])
def test_one_folder_under_both_kinds_is_one_scorer(
        trained: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Whether it lies here or not."""
    monkeypatch.chdir(trained.parent)
    older, newer = {"kind": "ngram", "source": source}, {"kind": "attributes", "source": source}
    for pair in ((older, newer), (newer, older), (newer, newer), (older, older)):
        with pytest.raises(ValidationError, match="both are or contain"):
            scoring(*pair)


def test_the_folder_says_what_is_in_it(trained: Path) -> None:
    labels = trained.parent / "labels.csv"
    assert json.loads((trained / "manifest.json").read_text())["result"]["contains"] == str(labels)
    assert load_attribute_scorer(trained).attributes == ("toxicity", "threat"), "the note changes nothing else"


def test_a_scorer_trained_without_labelled_text_may_judge_what_ngram_trained(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.scoring.ngram.load_ngram_scorer", lambda source: pytest.fail("it was asked for"))
    train_scorer(make_records(tmp_path / "records.jsonl"), output=tmp_path / "scorer", labelled="none")
    assert not load_attribute_scorer(tmp_path / "scorer").model.base.any()
    assert scoring({"kind": "ngram"}, {"kind": "ngram", "source": str(tmp_path / "scorer")})


def test_the_packaged_labelled_text_is_the_same_by_name_and_by_default() -> None:
    with pytest.raises(ValidationError, match="both are or contain"):
        scoring({"kind": "ngram"}, {"kind": "ngram", "source": LABELLED_TEXT})


def test_a_trained_scorer_from_elsewhere_is_looked_into_before_it_judges(
        trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe cannot see into S3; the step that fetches the scorer can."""
    recipe = scoring({"kind": "ngram", "source": str(trained.parent / "labels.csv")},
                     {"kind": "attributes", "source": "s3://bucket/scorer"})
    monkeypatch.setattr("llm_detox.scoring.load.fetch",
                        lambda source, kind: trained if source.startswith("s3://") else Path(source))
    with pytest.raises(UsageError, match="both are or contain"):
        check_kept_apart(recipe)
    check_kept_apart(scoring({"kind": "bilstm"}, {"kind": "ngram", "source": "s3://bucket/scorer"}))


def test_a_scorer_that_does_not_say_what_is_in_it_is_taken_to_have_the_packaged_text(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1)}, tmp_path / "scorer.safetensors", metadata={"format": "older"})
    with pytest.raises(ValidationError, match="both are or contain"):
        scoring({"kind": "ngram"}, {"kind": "ngram", "source": str(tmp_path)})


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_a_file_that_is_no_scorer_is_left_to_whoever_loads_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scorer.safetensors").write_bytes(content)
    assert scoring({"kind": "ngram"}, {"kind": "ngram", "source": str(tmp_path)})
