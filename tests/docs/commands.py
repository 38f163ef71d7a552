"""The shell commands of README and docs, and the table of those that no test runs, each with its reason."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "notebooks").glob("*.md"))]
PROGRAMS = ("llm-detox", "make", "python", "python3.11", ".venv/bin/python", "kubectl", "oc", "aws", "cp", "git",
            "images/build", "lm_eval", "source", "fresh/bin/llm-detox", "for", "(umask")
_VARIABLE = re.compile(r"^[A-Z_]+=\S*$")
_FENCE = re.compile(r"^(\s*)```(\w*)$")


@dataclass(frozen=True)
class Command:
    """One command of a page; `words` are without variables in front, redirections and comments."""

    page: str
    line: int
    text: str
    words: list[str] = field(hash=False, compare=False)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text[:60]}"


# A pattern of the command, and why it is not run: only parsed, and the files that it names must be there. Whatever
# matches nothing here is run.
NOT_RUN = {
    # What the machine of a test has not.
    r"^(kubectl (port-forward|apply -[nf]|create|wait)|oc |HOST=|\(umask)": (
        "needs a cluster; tests/cluster/test_apply.py runs the page's kubectl commands in their order"),
    r"^llm-detox publish \S+ oci://": "needs a registry; tests/unit/storage/test_images.py publish to a real one",
    r"^aws ": "needs the AWS client and a store; tests/unit/storage talk to a real one",
    r"^python -m pipelines submit ": "needs a pipeline server; tests/pipeline/test_submit.py plays one",
    r"deploy\.target=kserve": "needs a cluster; tests/cluster run doctor and deploy against a real API server",
    r"^(images/build|for image in )": "needs podman and a registry",
    r"(checkov-env/|audit-env/|LLM_DETOX_CHECKOV|LLM_DETOX_MINIO|LLM_DETOX_TGIS_PYTHON)": (
        "needs programs that no lock has"),
    r"-m pip wheel|^python3.11 -m venv |^fresh/bin/": "builds and installs: a release, a scanner",
    r"^git ": "changes or judges the checkout itself",
    r"--recipe recipes/llama2-\S+": "needs Llama-2; tests/pipeline/test_recipes_rehearsed.py runs these steps tiny",
    r"^llm-detox serve s3://": "needs a published model; tests/serving/test_serve.py publishes and serves one",
    r"^llm-detox detector serve ": "until Ctrl-C; tests/unit/detector start the server and its program",
    r"^python -m serving\.guard ": "until Ctrl-C; tests/manifests/test_guard_sample.py starts the server",
    r"--generations runs/live\.jsonl": "needs live samples; tests/unit/detector/test_samples.py evaluates some",
    r"^llm-detox compare-ui ": "a page until Ctrl-C; tests/unit/compare_ui/test_page.py and tests/browser open it",
    r"-m ipykernel install": "writes into the home folder",
    r"^lm_eval ": "needs lm-evaluation-harness; tests/unit/evaluation/test_harness.py has it run the task",
    r"--generations runs/lm-eval/": "needs its samples; tests/unit/evaluation/test_harness.py scores some",
    r"^llm-detox report .*--lm-eval ": "needs evaluations; tests/unit/evaluation/test_report.py reads such results",
    # What takes too long.
    r"^(\w+=\S+ )?make ": "the suites, installations and demos themselves; their recipes are expanded by make -n",
    r"rephraser_training\.pair_similarity|paraphrase\.model=paraphraser|--adapter second|training\.base=paraphraser": (
        "half an hour of training, and what uses its model; tests/unit/rephrase and tests/unit/training run both tiny"),
    r"^llm-detox evaluate --recipe recipes/smollm2-quality": (
        "a measurement of minutes; tests/unit/evaluation measure side effects of tiny models"),
    r"^llm-detox train-scorer --input \.\./shared": (
        "needs those records; tests/unit/scoring/test_attributes.py trains on some like them"),
    r"-m pytest ": "tests themselves",
    r"-m benchmarks\.": "measurements: minutes to hours",
    r"^llm-detox recipe rehearse recipes/": "minutes; tests/pipeline/test_recipes_rehearsed.py rehearses every recipe",
    r"^python -m pipelines run ": "minutes to hours; tests/pipeline/test_local_run.py runs it with tiny models",
}


def pages() -> list[Path]:
    return [page for page in PAGES if page.exists()]


def commands(page: Path) -> list[Command]:
    """The commands of the page's shell blocks, in order; `...` stands for what the command before had there."""
    found: list[Command] = []
    for line, text in _lines(page):
        for part in re.split(r"\s+&&\s+", text):
            words = shlex.split(part, comments=True)
            while words and _VARIABLE.match(words[0]):
                words = words[1:]
            words = [word for word in words if word != "&"]
            if ">" in words:
                words = words[:words.index(">")]
            if "..." in words:
                before = next(one.words for one in reversed(found) if one.words[:2] == words[:2])
                words = [*before, *words[words.index("...") + 1:]]
            if words:
                found.append(Command(str(page.relative_to(ROOT)), line, part, words))
    return found


def inline(page: Path) -> list[Command]:
    """The commands that the page's sentences and tables name."""
    text = "\n".join("" if fenced else line for fenced, _, line in _marked(page))
    return [Command(str(page.relative_to(ROOT)), 0, code, shlex.split(code))
            for code in re.findall(r"`((?:llm-detox|make|python -m (?:pipelines|benchmarks[.\w]+)) [^`\n]+)`", text)
            if code.count('"') % 2 == code.count("'") % 2 == 0]


def reason_not_to_run(command: Command) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, command.text)), None)


def _lines(page: Path) -> Iterator[tuple[int, str]]:
    """Whole lines of the shell blocks: fenced as `sh`, or indented and beginning with a program."""
    block: list[tuple[int, str]] = []
    for number, (fenced, kind, line) in enumerate(_marked(page), start=1):
        indented = not fenced and line.startswith("    ")
        if (fenced and kind == "sh") or indented:
            block.append((number, line.strip()))
        else:
            yield from _joined(block)
            block = []
    yield from _joined(block)


def _joined(block: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The block's lines without comments, continued ones as one; nothing where it is no shell."""
    first = next((word for _, line in block for word in line.split()
                  if not line.startswith("#") and not _VARIABLE.match(word)), "")
    if not first.startswith(PROGRAMS) and first not in PROGRAMS:
        return
    whole, start = "", 0
    for number, line in block:
        start = start if whole else number
        whole += line.removesuffix("\\")
        if not line.endswith("\\"):
            code = re.sub(r"\s+#.*$|^#.*$", "", whole).strip()
            if code:
                yield start, re.sub(r"\s+", " ", code)
            whole = ""


def _marked(page: Path) -> Iterator[tuple[bool, str, str]]:
    """Each line with whether it stands in a fenced block, and of which kind; the fences themselves are empty."""
    kind: str | None = None
    for line in page.read_text("utf-8").splitlines():
        fence = _FENCE.match(line)
        if fence:
            kind = fence[2] if kind is None else None
            yield False, "", ""
        else:
            yield kind is not None, kind or "", line


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    found: list[str] = []
    inside = False
    for fenced, of, line in _marked(page):
        if fenced and of == kind:
            if not inside:
                found.append("")
            found[-1] += line + "\n"
        inside = fenced
    return found
