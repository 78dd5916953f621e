"""``alignlab data check``: what it prints, its exit codes, its JSON and its page."""

from __future__ import annotations

import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.commands.data_check import examine
from alignlab.commands.data_setup import Setup

GOOD = [
    {"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}.", "rejected": f" not {2 * i}!"}
    for i in range(60)
]
TINY = ("backbone=tiny", "tokens=dialogue")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write(folder: Path, rows: list[dict], name: str = "pairs.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["data", "check", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_data_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", write(tmp_path, GOOD), *TINY]) == 0
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings: ready to train on" in said
    assert "ERROR" not in said
    for split in ("sft", "preference", "validation", "test"):
        assert f"\n{split} " in said


@pytest.mark.slow
def test_errors_exit_with_1_and_name_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [dict(row) for row in GOOD]
    for row in bad:
        row["chosen"] += "<|eos|> and on"
    assert main(["data", "check", write(tmp_path, bad), *TINY]) == 1
    said = capsys.readouterr().out
    assert "ERROR sft, preference: special_token_in_text" in said
    assert "pairs.jsonl, line " in said
    assert "training would be refused" in said


@pytest.mark.slow
def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*GOOD, GOOD[0], {"prompt": "x is", "chosen": " \x00", "rejected": " <é>"}]
    code, found = checked(capsys, write(tmp_path, rows), *TINY)
    assert (code, found["errors"], found["vocabulary"]) == (0, 0, 259)
    assert found["warnings"] == len(found["findings"]) >= 1
    for finding in found["findings"]:
        assert finding["severity"] == "warning"
        assert len(finding["rows"]) == len(finding["places"]) <= finding["count"]
    sizes = found["splits"]["preference"]
    assert sizes["need"] == "pairs"
    assert sizes["completions"] == 2 * sizes["rows"]
    assert sum(s["rows"] for name, s in found["splits"].items() if name != "sft") == len(rows)


@pytest.mark.slow
def test_leaks_between_files_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path, GOOD)
    test = write(tmp_path, [GOOD[7], {"prompt": "z", "chosen": " a", "rejected": " b"}], "t.jsonl")
    code, found = checked(capsys, train, f"data.test_path={test}", *TINY)
    [leak] = [f for f in found["findings"] if f["code"] == "prompt_in_two_splits"]
    assert code == 1
    assert leak["places"][0].endswith("line 8")
    assert leak["splits"] == ["sft", "preference"]


@pytest.mark.slow
def test_what_a_method_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thumbs = [{"prompt": f"{i} is", "completion": f" {i}.", "label": i % 3 > 0} for i in range(60)]
    file = write(tmp_path, thumbs)
    code, found = checked(capsys, file, *TINY, "--split", "preference")
    assert code == 1
    assert {f["code"] for f in found["findings"] if f["severity"] == "error"} == {"verdict_missing"}
    code, found = checked(capsys, file, "objective=kto", *TINY, "--split", "preference")
    assert (code, found["splits"]["preference"]["need"]) == (0, "thumbs")


@pytest.mark.slow
def test_bare_prompts_are_sampled_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without completions the preference split needs none; supervised fine-tuning does."""
    file = write(tmp_path, [{"prompt": f"{i} is"} for i in range(60)])
    code, found = checked(capsys, file, *TINY)
    assert code == 1
    errors = [(f["code"], f["splits"]) for f in found["findings"] if f["severity"] == "error"]
    assert errors == [("verdict_missing", ["sft"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "a", "chosen": "b"}\n', "rejected"),
        ('{"prompt": "a", "chosen": 3, "rejected": "c"}\n', "chosen"),
        ("", "no rows"),
        ('{"prompt": "a"\n', "line 1"),
    ],
)
def test_what_no_format_reads_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    assert main(["data", "check", str(file), *TINY]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_one_slip_or_the_wrong_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first row that cannot be read is named, the others of the next thousand are counted."""
    rows = [dict(row) for row in GOOD]
    for number in (2, 30, 59):
        rows[number]["chosen"] = number  # type: ignore[assignment]
    assert main(["data", "check", write(tmp_path, rows), *TINY]) == 2
    said = capsys.readouterr().err
    assert "line 3" in said
    assert "2 of the next 57 rows cannot be read either" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["a.jsonl", "b.jsonl"], "one data file at a time"),
        (["--rows", "3"], "--rows"),
        (["--split", "tset"], "Did you mean 'test'"),
        (["backbone=tinny"], "tiny"),
        (["gate.empty_completion.eror=1"], "error"),
        (["gate.empty_completion.error=2"], "gate.empty_completion.error"),
    ],
)
def test_a_refused_configuration_exits_with_2(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["data", "check", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_limits_come_from_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, [*GOOD, *GOOD])
    assert checked(capsys, file, *TINY)[0] == 0
    assert checked(capsys, file, *TINY, "gate.repeated_row.error=0.4")[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a=b.jsonl", "it's, a (file) [x].jsonl", "data.path=x.jsonl"])
def test_any_file_name(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    write(tmp_path, GOOD, name)
    monkeypatch.chdir(tmp_path)
    code, found = checked(capsys, name, *TINY, "--split", "sft")
    assert (code, found["data"]) == (0, name)


@pytest.mark.slow
def test_rows_that_a_template_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named, and the others are checked all the same."""
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system message, please') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    rows = [
        {
            "messages": [
                *([{"role": "system", "content": "be kind"}] if i in (3, 8) else []),
                {"role": "user", "content": f"what is {i}?"},
                {"role": "assistant", "content": f"it is {i}"},
            ]
        }
        for i in range(40)
    ]
    words = (write(tmp_path, rows), *TINY, "data.validation=0", "data.test=0", "--split", "sft")
    code, found = checked(capsys, *words, f"backbone.template={template}")
    [refused] = [f for f in found["findings"] if f["code"] == "not_tokenizable"]
    assert code == 1
    assert sorted(refused["places"]) == ["pairs.jsonl, line 4", "pairs.jsonl, line 9"]
    assert "no system message, please" in refused["message"]
    assert found["splits"]["sft"]["rows"] == 38


@pytest.mark.slow
def test_messages_without_a_template_stop_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": f"{i}"} for i in range(300)
    ]
    code, found = checked(capsys, write(tmp_path, rows), "--split", "sft")  # reviews_lm has none
    [refused] = [f for f in found["findings"] if f["severity"] == "error"]
    assert (code, refused["code"], refused["count"]) == (1, "not_tokenizable", 64)
    assert "the rest was not tried" in refused["message"]
    assert "chat template" in refused["message"]


# -- the page --------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags and texts of a page; nothing may be left open."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.slow
def test_the_page_holds_hostile_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>\x00&amp; <|eos|> x"
    rows = [*GOOD, *({**row, "chosen": hostile + row["chosen"]} for row in GOOD)]
    page = tmp_path / "check.html"
    assert main(["data", "check", write(tmp_path, rows), *TINY, "--html", str(page)]) == 1
    assert f"page: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert not read.open
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert not any(name.startswith("on") for name in read.attributes)
    assert "<script>alert(1)</script>" in read.text
    assert "\x00" not in text
    assert "\\x00" in read.text
    assert "special_token_in_text" in read.text
    assert "http" not in text.replace("http-equiv", "")
    assert "light-dark(" in text
    assert "@media print" in text
    assert len(text) < 200_000


@pytest.mark.slow
def test_a_page_in_no_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", write(tmp_path, GOOD), *TINY, "--html", str(tmp_path / "no" / "p")]
    assert main(words) == 2
    assert "--html" in capsys.readouterr().err


# -- light and true --------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from alignlab.cli import main;"
        f"main(['data', 'check', {write(tmp_path, GOOD)!r}]);"
        "print([m for m in ('torch', 'datasets', 'trl') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_tokenizer_is_the_one_of_training(store: Path) -> None:
    """Named directly, so that torch stays out: the same ids as transformers' own choice."""
    from transformers import AutoTokenizer

    from alignlab.models.load import resolve

    for backbone in ("reviews_lm", "tiny"):
        setup = Setup.of(None, [f"backbone={backbone}"])
        ours = setup.tokenizer()
        theirs = AutoTokenizer.from_pretrained(resolve(setup.backbone.path, setup.cache))
        text = "The film, “was” good<|eos|> — naïve 🎬\n\n  x"
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.chat_template == theirs.chat_template
        assert setup.vocabulary() in (None, len(theirs))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "hh-rlhf/harmless-base-part.jsonl.gz",
        "gsm8k/test.jsonl.gz",
        "gsm8k/example_model_solutions.jsonl.gz",
        "self-instruct/seed_tasks.jsonl",
        "ifbench/IFBench_test.jsonl",
    ],
)
def test_data_that_nobody_here_wrote(name: str) -> None:
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    file = Path(os.environ.get("ALIGNLAB_SHARED_DATA", default)) / name
    if not file.is_file():
        pytest.skip(f"optional data set not found: {file}")
    tests = ["data.allow_test=true"] if "test" in file.name else []
    report = examine(Setup.of(str(file), [*TINY, *tests]), ["preference"])
    [preference] = report.splits
    assert preference.statistics.rows > 100
    assert {f.code for f in preference.findings if f.severity == "error"} <= {"verdict_missing"}
