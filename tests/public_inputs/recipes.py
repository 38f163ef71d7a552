"""Public reports about YAML and the values in it: words that become others, numbers, tabs, aliases, kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_detox.recipe.files import load_recipe, parse_yaml
from tests.conftest import REPOSITORY
from tests.public_inputs.case import Case, Refused, of

_DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"


def text(content: str) -> Callable[[Path], object]:
    """Reads YAML without a schema."""
    return of(lambda: parse_yaml(content, "recipe.yaml"))


def key(name: str, value: str) -> Callable[[Path], object]:
    """Reads a recipe with this value, as YAML, at a key."""
    def read(_: Path) -> object:
        found: object = load_recipe(_DEMO, [f"{name}={value}"])
        for part in name.split("."):
            found = getattr(found, part)
        return found

    return read


def file(content: str) -> Callable[[Path], object]:
    """Reads a whole recipe from a file."""
    def read(folder: Path) -> object:
        (folder / "recipe.yaml").write_text(content, "utf-8")
        return load_recipe(folder / "recipe.yaml")

    return read


NUMBERS = (
    Case("hiyouga/LlamaFactory#4014", "a learning rate without a point",
         key("training.sft.learning_rate", "2e-5"), 2e-5),
    Case("determined-ai/determined#2688", "the same, in another section",
         key("training.dpo.learning_rate", "1e-5"), 1e-5),
    Case("EducationalTestingService/skll#318", "a list of both kinds",
         key("detoxify.tmarco.weights", "[-5e-1, 4.25]"), [-0.5, 4.25]),
    Case("calliope-project/calliope#57", "a number of texts as 1e3", key("data.texts.count", "1e3"),
         Refused("data.texts.count: input should be a valid integer")),
    Case("eemeli/yaml#205", "a leading zero, octal to YAML 1.1", text("seed: 0666"),
         Refused("line 1: .*0666 has a leading zero: write 666")),
    Case("kislyuk/yq#201", "a leading zero that is no octal number", key("seed", "08"), 8),
    Case("arp242/arp242.net#3", "a key with a leading zero", text("013: Tilburg"), Refused("line 1: .*013 .*write 13")),
    Case("yaml/pyyaml#608", "an octal number of YAML 1.2", key("seed", "0o12"),
         Refused("seed: input should be a valid integer")),
    Case("konstruktoid/ansible-collection-hardening#87", "a time, which YAML 1.1 counts in seconds",
         text("max_steps: 12:30"), Refused("line 1: .*12:30 reads as a time: .*in quotes")),
    Case("fastapi/fastapi#453", "a fraction where a whole number belongs", key("data.texts.count", "1.5"),
         Refused("data.texts.count: input should be a valid integer")),
    Case("pydantic/pydantic#360", "a whole number written with a point", key("seed", "3.0"), 3),
    Case("pydantic/pydantic#10220", "a whole number where a fraction may stand",
         key("training.sft.learning_rate", "1"), 1.0),
)

WORDS = (
    Case("huggingface/huggingface_hub#797", "no in a list of words",
         key("training.lora.target_modules", "[q_proj, no]"),
         Refused("training.lora.target_modules")),
    Case("pydantic/pydantic#1130", "no as a name", key("name", "no"), Refused("name: input should be a valid string")),
    Case("0k/shyaml#56", "the key on", file("on: foo\n"), Refused("recipe.yaml: the recipe is not valid")),
    Case("pydantic/pydantic#579", "a word where yes or no belongs", key("training.sft.packing", "snap"),
         Refused("training.sft.packing: input should be a valid boolean")),
    Case("pydantic/pydantic#7820", "yes where text belongs", key("publish.url", "yes"),
         Refused("publish.url: input should be a valid string")),
    Case("pydantic/pydantic-core#152", "bytes where a number belongs", key("seed", "!!binary NQ=="),
         Refused("seed: ")),
)

SHAPES = (
    Case("yaml/pyyaml#235", "aliases of aliases, nine times nine", text("\n".join(
        ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
        + [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)])),
        Refused("more than 10000 values, aliases counted")),
    Case("hew-lang/hew#1459", "a few anchors, each used", text("a: &a 1\nb: &b [*a, *a]\nc: [*b, *a]"),
         {"a": 1, "b": [1, 1], "c": [[1, 1], 1]}),
    Case("yaml/pyyaml#604", "tags and brackets without end", text("{!![  \r{!  \r" * 60),
         Refused("recipe.yaml, line [0-9]+: not valid YAML")),
    Case("yaml/pyyaml#306", "a tab at the end of a line", text("a:\t\n  - 1\n"),
         Refused("line 1: not valid YAML: found character .*\n  remedy: write blanks for the tab")),
    Case("devicetree-org/dt-schema#76", "a tab inside a line", text("a:\n  - 1 \t # one\n"),
         Refused("line 2: not valid YAML: found character .*\n  remedy: write blanks for the tab")),
    Case("pydantic/pydantic-ai#8316", "a byte order mark",
         text("\ufeffa: 1\n"), {"a": 1}),
    Case("AutoGPTQ/AutoGPTQ#667", "no layers to train", key("training.lora.target_modules", "[]"),
         Refused("training.lora.target_modules: the names of layers are needed")),
)

CASES = NUMBERS + WORDS + SHAPES
