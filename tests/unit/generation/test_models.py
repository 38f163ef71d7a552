"""The door for model folders: what is not one whole model, without code, is refused with a message."""

from __future__ import annotations

import ast
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from llm_detox.errors import DetoxError
from llm_detox.generation.gguf_files import check_gguf
from llm_detox.generation.models import load_model, load_tokenizer, model_folder, open_tokenizer
from tests.conftest import REPOSITORY
from tests.helpers.damage import (
    LFS_POINTER,
    WEB_PAGE,
    copy_of,
    cut,
    edit_json,
    save_gguf,
    split_weights,
    with_code,
    without_tensors,
)
from tests.helpers.families import save_adapter

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def edit(name: str, **changes: object) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / name, **changes)


def renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def added_tokens(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(3)])
    tokenizer.save_pretrained(folder)


def chat_token(folder: Path) -> None:
    tokenizer = open_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def no_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            edit_json(folder / name, eos_token=None)


def shard_of_another(folder: Path) -> None:
    first, second, *_ = split_weights(folder)
    second.write_bytes(first.read_bytes())


def index_without_a_layer(folder: Path) -> None:
    without_tensors(folder / WEIGHTS, "layers.1.")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "configuration is no JSON": (put(CONFIG, b"{'model_type': llama}"), "damaged: no JSON"),
    "configuration is deep": (put(CONFIG, b"[" * 100_000), "damaged: no JSON"),
    "configuration is a list": (put(CONFIG, b"[]"), "damaged: no JSON object"),
    "configuration is no text": (put(CONFIG, b"\xff\xfe{}"), "damaged: no JSON"),
    "configuration is a pointer": (put(CONFIG, LFS_POINTER), "a Git LFS pointer lies in the file's place"),
    "configuration is a page": (put(CONFIG, WEB_PAGE), "a web page lies in the file's place"),
    "configuration of wrong kinds": (edit(CONFIG, hidden_size="wide"), "the configuration cannot be loaded"),
    "weights are cut": (lambda folder: cut(folder / WEIGHTS), "damaged: not a whole safetensors file"),
    "weights are too long": (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"more"),
                             "damaged: not a whole safetensors file"),
    "weights are a pointer": (put(WEIGHTS, LFS_POINTER), "a Git LFS pointer lies in the file's place"),
    "weights are a page": (put(WEIGHTS, WEB_PAGE), "a web page lies in the file's place"),
    "weights are pickled": (renamed(WEIGHTS, "pytorch_model.bin"), "no safetensors weights"),
    "a shard is missing": (lambda folder: split_weights(folder)[1].unlink(), "lacks a weight file"),
    "a shard is another one": (shard_of_another, "the weight file lacks the tensor"),
    "a shard lies elsewhere": (put("model.safetensors.index.json", b'{"weight_map": {"a": "../other.safetensors"}}'),
                               "lacks a weight file"),
    "the index is a list": (put("model.safetensors.index.json", b'{"weight_map": ["a"]}'), "not an index"),
    "a layer is missing": (index_without_a_layer, r"9 weights of the model are missing, such as model\.layers\.1\."),
    "the model type is unknown": (edit(CONFIG, model_type="llama9"), "the model type 'llama9' is not known"),
    "the model type is no name": (edit(CONFIG, model_type=["llama"]), "is not known"),
    "the model type is missing": (edit(CONFIG, model_type=None), "the model type None is not known"),
    "the model type needs code": (edit(CONFIG, model_type="own", auto_map={"AutoModel": "owner/name--own.Model"}),
                                  "brings its own code"),
    "the model brings code": (with_code, "brings its own code"),
    "the weights are named in the configuration": (edit(CONFIG, transformers_weights="adapter_model.bin"),
                                                   "names weight files of its own"),
    "the tokenizer is damaged": (put(TOKENIZER, b'{"version": "1.0"}'), "the tokenizer cannot be loaded"),
    "the tokenizer is a pointer": (put(TOKENIZER, LFS_POINTER), "the tokenizer cannot be loaded"),
    "the tokenizer ends no text": (no_end, "names no token that ends a text"),
    "there are more tokens than embeddings": (added_tokens, r"3 tokens of the tokenizer, such as <extra_0>, are beyond "
                                               r"the model's \d+ embeddings"),
    "a token of the template has no embedding": (chat_token, r"such as <\|turn\|>, are beyond the model's"),
    "there are fewer embeddings than said": (edit(CONFIG, vocab_size=5000), "vocab_size is 5000, but model.embed"),
    "generation settings are no JSON": (put("generation_config.json", b"{"), "damaged: no JSON"),
    "layers are of another size": (edit(CONFIG, intermediate_size=96), "the model cannot be loaded"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused_with_a_message(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    damage, message = FAULTS[fault]
    damage(folder := copy_of(tiny_llama, tmp_path / "model"))
    with pytest.raises(DetoxError, match=message) as caught:
        load_tokenizer(folder)
        load_model(folder)
    assert caught.value.remedy
    assert str(folder) in str(caught.value.place)
    assert not (folder / "was_run").exists()


def test_a_model_of_transformers_that_also_names_code_loads_without_it(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_llama, tmp_path / "model")
    edit_json(folder / CONFIG, auto_map={"AutoModelForCausalLM": "owner/name--own.Model"})
    assert type(load_model(folder)).__name__ == "LlamaForCausalLM"


def test_a_special_token_without_embedding_is_read_as_plain_characters(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = open_tokenizer(folder := copy_of(tiny_llama, tmp_path / "model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    read = load_tokenizer(folder)
    assert read.decode(read("a <image> b")["input_ids"]) == "a <image> b"
    assert max(read("a <image> b")["input_ids"]) < load_model(folder).get_input_embeddings().weight.shape[0]
    assert capsys.readouterr().err.count("no embeddings for <image>") == 1


def test_a_model_in_several_files_is_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    split_weights(folder := copy_of(tiny_llama, tmp_path / "model"))
    whole, parts = load_model(tiny_llama).state_dict(), load_model(folder).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


ADAPTER = "adapter_model.safetensors"
ADAPTER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (renamed(ADAPTER, "adapter_model.bin"), r"has no adapter_model\.safetensors"),
    "cut": (lambda folder: cut(folder / ADAPTER), "damaged: not a whole safetensors file"),
    "a pointer": (put(ADAPTER, LFS_POINTER), "a Git LFS pointer"),
    "configuration is no JSON": (put("adapter_config.json", b"{"), "damaged: no JSON"),
    "of an unknown kind": (edit("adapter_config.json", peft_type="NEW"), "the adapter does not fit the model"),
    "half": (lambda folder: without_tensors(folder / ADAPTER, "layers.1."), "missing adapter keys"),
    "base is missing": (put("base.json", b'{"base": "./none"}'), "no such file or folder"),
    "base is not named": (put("base.json", b'{"base": 5}'), "does not name its base model"),
    "base note is no JSON": (put("base.json", b""), "damaged: no JSON"),
}


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "adapter")


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_folder_that_is_no_whole_adapter_is_refused_with_a_message(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was read"))
    damage, message = ADAPTER_FAULTS[fault]
    damage(folder := copy_of(adapter, tmp_path / "adapter"))
    with pytest.raises(DetoxError, match=message) as caught:
        load_model(folder)
    assert caught.value.remedy


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_becomes_a_model_with_the_files_weights(tmp_path: Path, cache: Path) -> None:
    folder = model_folder(str(save_gguf(tmp_path / "whole.gguf")))
    weights = load_model(folder).get_input_embeddings().weight.detach()
    assert weights.shape == (60, 32)
    assert float(weights.std()) == pytest.approx(1, abs=0.1)


GGUF_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "one of two parts": (lambda path: save_gguf(path, layers=1, split=(0, 2)), "one of 2 parts of a model"),
    "half of the layers": (lambda path: save_gguf(path, layers=1), "9 weights of the model are missing"),
    "values are cut": (lambda path: cut(save_gguf(path)), "damaged: not a whole GGUF file"),
    "fields are cut": (lambda path: path.write_bytes(save_gguf(path).read_bytes()[:300]), "damaged: not a whole GGUF"),
    "a pointer": (lambda path: path.write_bytes(LFS_POINTER), "a Git LFS pointer"),
    "a page": (lambda path: path.write_bytes(WEB_PAGE), "a web page"),
    "empty": (lambda path: path.touch(), "damaged: not a whole GGUF file"),
    "of a new version": (lambda path: path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 9, 0, 0)), "version 9"),
    "of endless lists": (lambda path: path.write_bytes(
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 6, 2**60)), "damaged: not a whole GGUF file"),
    "of an unknown architecture": (lambda path: path.write_bytes(
        save_gguf(path).read_bytes().replace(b"llama", b"lamma")), "transformers cannot read this GGUF file"),
}


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_gguf_file_that_is_no_whole_model_is_refused_with_a_message(
    tmp_path: Path, cache: Path, fault: str
) -> None:
    damage, message = GGUF_FAULTS[fault]
    damage(path := tmp_path / "model.gguf")
    with pytest.raises(DetoxError, match=message) as caught:
        model_folder(str(path))
    assert caught.value.remedy
    assert not list(cache.glob("models/*"))


def test_of_several_gguf_files_none_is_taken_by_chance(tmp_path: Path) -> None:
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(DetoxError, match=r"several GGUF files: a-00001-of-00002\.gguf, a-00002-of-00002\.gguf"):
        model_folder(str(tmp_path))


def test_what_the_check_of_gguf_files_reads_is_bounded_by_the_file(tmp_path: Path) -> None:
    whole = save_gguf(tmp_path / "whole.gguf").read_bytes()
    check_gguf(tmp_path / "whole.gguf")
    generator = torch.Generator().manual_seed(3)
    for _ in range(200):
        at, value = (int(torch.randint(high, (1,), generator=generator)) for high in (700, 256))
        (tmp_path / "bent.gguf").write_bytes(whole[:at] + bytes([value]) + whole[at + 1:])
        with suppress(DetoxError):
            check_gguf(tmp_path / "bent.gguf")


# Loads that know no such option: what they read is JSON of settings, and weights that were checked.
_WITHOUT_OPTION = {"GenerationConfig.from_pretrained", "PeftModel.from_pretrained", "PeftConfig.from_pretrained"}


@pytest.mark.parametrize("room", ["llm_detox", "serving", "components", "pipelines"])
def test_every_load_of_a_model_says_that_no_remote_code_is_run(room: str) -> None:
    loads = [(path, node) for path in sorted((REPOSITORY / room).rglob("*.py"))
             for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Attribute | ast.Name)
             and ast.unparse(node.func).rpartition(".")[2] in ("from_pretrained", "from_config", "LLM",
                                                               "AsyncEngineArgs")
             and ast.unparse(node.func) not in _WITHOUT_OPTION]
    assert loads or room in ("components", "pipelines")
    for path, node in loads:
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert said.get("trust_remote_code") == "False", f"{path}, line {node.lineno}: {ast.unparse(node)}"
