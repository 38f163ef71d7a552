"""The exported folder is the tuned model, readable by old and new releases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_detox.errors import DetoxError
from llm_detox.export.converting import convert
from llm_detox.export.merge import narrow
from llm_detox.export.verify import verify
from llm_detox.generation.models import write_base_source
from llm_detox.runs.folders import read_manifest
from tests.helpers.damage import with_code
from tests.helpers.families import caikit_python
from tests.helpers.tiny import save_tiny_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in bfloat16, with a rope theta that is not the default and a chat template."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("base") / "llama", seed=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, seed: int = 3, with_tokenizer: bool = True, **options: Any) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False,
                           **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(folder)
    if with_tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    write_base_source(folder, str(base))
    return folder


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    merged: Any = model.merge_and_unload()
    return {name: tensor.to(torch.bfloat16) for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32, "layers.1.mlp.up_proj": 3}},
], ids=["all-linear", "rslora", "two-modules", "patterns"])
def test_the_merge_is_that_of_peft_in_float32_rounded_once(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    result = convert(model=str(adapter), output=tmp_path / "out")
    written = load_file(tmp_path / "out/artifacts/model.safetensors")
    expected, original = merged_by_peft(base, adapter), load_file(base / "model.safetensors")
    assert set(written) == set(original)
    changed = 0
    for name, tensor in written.items():
        assert tensor.dtype == original[name].dtype == torch.bfloat16
        if torch.equal(expected[name], original[name]):
            assert torch.equal(tensor, original[name]), name
            continue
        changed += 1
        # The order of float32 sums may differ: at most one value in a thousand lands on the neighbouring bfloat16.
        assert (tensor != expected[name]).float().mean() < 1e-3, name
        torch.testing.assert_close(tensor, expected[name], rtol=2**-7, atol=1e-6)
    assert changed == result["merged"] > 0


def test_tensors_that_the_adapter_does_not_touch_keep_their_bits(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    convert(model=str(adapter), output=tmp_path / "out")
    written, original = load_file(tmp_path / "out/artifacts/model.safetensors"), load_file(base / "model.safetensors")
    for name, tensor in written.items():
        assert torch.equal(tensor.view(torch.int16), original[name].view(torch.int16)) == ("q_proj" not in name), name


def test_adapters_on_adapters_are_merged_in_order(base: Path, tmp_path: Path) -> None:
    first = save_adapter(base, tmp_path / "first", seed=1, target_modules=["q_proj"])
    middle = convert(model=str(first), output=tmp_path / "middle")
    second = save_adapter(base, tmp_path / "second", seed=2, target_modules=["v_proj"])
    write_base_source(second, str(first))
    result = convert(model=str(second), output=tmp_path / "out")
    assert result["merged"] == 2 * middle["merged"] == 4


def test_the_folder_is_what_caikit_and_old_readers_expect(base: Path, tmp_path: Path) -> None:
    card = tmp_path / "model_card.md"
    card.write_text("# card")
    convert(model=str(base), output=tmp_path / "out", card=card)
    artifacts = tmp_path / "out/artifacts"
    settings = yaml.safe_load((tmp_path / "out/config.yml").read_text())
    assert settings["module_id"] == "f9181353-4ccf-4572-bd1e-f12bcda26792"
    assert (settings["artifact_path"], settings["eos_token"], settings["torch_dtype"]) == (
        "artifacts", "</s>", "bfloat16")
    config = json.loads((artifacts / "config.json").read_text())
    assert config["rope_theta"] == 500.0
    assert config["torch_dtype"] == "bfloat16"
    assert not {"dtype", "rope_parameters"} & set(config)
    tokenizer = json.loads((artifacts / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "token_type_ids" not in tokenizer["model_input_names"]
    assert tokenizer["chat_template"].startswith("{% for m")
    assert not (artifacts / "chat_template.jinja").exists()
    merges = json.loads((artifacts / "tokenizer.json").read_text())["model"]["merges"]
    assert all(isinstance(pair, str) for pair in merges)
    assert (artifacts / "README.md").read_text() == "# card"
    listed = read_manifest(tmp_path / "out")["files"]
    assert {"config.yml", "artifacts/model.safetensors", "artifacts/tokenizer.json"} <= set(listed)


def test_the_same_model_makes_the_same_files(base: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(model=str(base), output=tmp_path / name)
    assert read_manifest(tmp_path / "a")["files"] == read_manifest(tmp_path / "b")["files"]


@pytest.mark.heavy
def test_old_and_new_readers_make_the_same_greedy_tokens(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    convert(model=str(adapter), output=tmp_path / "out")
    seen = verify(tmp_path / "out", [caikit_python()], max_new_tokens=8)
    releases = {one["transformers"].split(".")[0] for one in seen["readers"].values()}
    assert releases == {"4", "5"}
    assert all(len(answer["new_ids"]) for answer in seen["answers"])


@pytest.mark.slow
def test_verify_notices_a_reader_that_sees_another_model(base: Path, tmp_path: Path) -> None:
    python = caikit_python()
    convert(model=str(base), output=tmp_path / "out")
    path = tmp_path / "out/artifacts/config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_theta")
    path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}))
    with pytest.raises(DetoxError, match="reads another model"):
        verify(tmp_path / "out", [python], prompts=["the quick brown fox jumps over the lazy dog and"],
               max_new_tokens=24)


def broken(base: Path, folder: Path, without: str = "", config: dict[str, Any] | None = None) -> Path:
    shutil.copytree(base, folder)
    for path in folder.glob(without) if without else ():
        path.unlink()
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(("without", "message"), [
    ("tokenizer*", "has no tokenizer"), ("*.safetensors", "no safetensors weights"), ("config.json", "no config.json"),
])
def test_an_incomplete_model_is_refused_and_leaves_nothing(
    base: Path, tmp_path: Path, without: str, message: str
) -> None:
    folder = broken(base, tmp_path / "model", without)
    with pytest.raises(DetoxError, match=message) as caught:
        convert(model=str(folder), output=tmp_path / "out")
    assert caught.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_cut_off_weight_file_is_refused(base: Path, tmp_path: Path) -> None:
    folder = broken(base, tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    for cut in (0, 4, 100, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:cut])
        with pytest.raises(DetoxError, match="damaged"):
            convert(model=str(folder), output=tmp_path / "out")


def test_own_code_and_readers_that_are_too_old_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="brings its own code"):
        convert(model=str(with_code(broken(base, tmp_path / "a"))), output=tmp_path / "out")
    convert(model=str(broken(base, tmp_path / "c", config={"auto_map": {"AutoModel": "owner/name--x.Y"}})),
            output=tmp_path / "native")
    assert "auto_map" not in json.loads((tmp_path / "native/artifacts/config.json").read_text())
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    folder = broken(base, tmp_path / "b", config={"rope_parameters": rope})
    with pytest.raises(DetoxError, match=r"rope type 'llama3' came with transformers 4\.43"):
        convert(model=str(folder), output=tmp_path / "out", oldest_reader="4.40")
    result = convert(model=str(folder), output=tmp_path / "out", oldest_reader="4.49")
    assert [answer == "yes" for answer in result["readers"].values()] == [False, True]
    config = json.loads((tmp_path / "out/artifacts/config.json").read_text())
    assert config["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize(("options", "message"), [
    ({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "all"}, "bias=all"), ({"init_lora_weights": "pissa"}, "pissa"), ({"peft_type": "IA3"}, "IA3"),
])
def test_adapters_that_cannot_be_merged_are_refused(
    base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **options}))
    with pytest.raises(DetoxError, match=message):
        convert(model=str(adapter), output=tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor[..., :-1].contiguous() if "lora_A" in name else tensor for name, tensor in weights.items()},
              adapter / "adapter_model.safetensors")
    with pytest.raises(DetoxError, match="does not fit the base"):
        convert(model=str(adapter), output=tmp_path / "out")
    save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in weights.items()},
              adapter / "adapter_model.safetensors")
    with pytest.raises(DetoxError, match="stores no such weight"):
        convert(model=str(adapter), output=tmp_path / "out")


@given(st_numpy.arrays(np.uint32, st.integers(1, 20), elements=st.integers(0, 2**32 - 1)))
def test_rounding_to_bfloat16_is_that_of_torch(bits: Any) -> None:
    values = bits.view(np.float32)
    ours = torch.from_numpy(narrow(values, "BF16").view(np.int16).copy()).view(torch.bfloat16)
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16)
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    assert torch.equal(ours[~torch.isnan(ours)], theirs[~torch.isnan(theirs)])


def test_verify_on_the_command_line_names_the_readers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llm_detox.cli import run_app
    from llm_detox.cli.models import exports as app
    from llm_detox.export import verify as module

    asked: list[Any] = []

    def probed(python: str, models: Any, prompts: Any, count: int, timeout: float) -> dict[str, Any]:
        asked.append((python, list(models), list(prompts), count))
        answer = {"prompt_ids": [1], "new_ids": [2 if python == "other" else 3], "text": "x"}
        return {"transformers": "4.40.2", "tokenizers": "0.19.1",
                "models": [{"answers": [answer for _ in prompts], "chat_template": None} for _ in models]}

    monkeypatch.setattr(module, "_probe", probed)
    monkeypatch.setattr("sys.argv", ["export", "verify", str(base), "--python", "old", "--prompt", "a",
                                     "--max-new-tokens", "5"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert not ended.value.code
    assert "old: transformers 4.40.2, tokenizers 0.19.1: the same tokens" in capsys.readouterr().out
    assert ("old", [base], ["a"], 5) in asked
    monkeypatch.setattr("sys.argv", ["export", "verify", str(base), "--python", "other"])
    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == 1
    assert "reads another model" in capsys.readouterr().err
