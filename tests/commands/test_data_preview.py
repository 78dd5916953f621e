"""``alignlab data preview``: from a file and overrides to tokens on a screen or page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest

from alignlab.commands.data_preview import preview
from alignlab.commands.preview_text import has_colour, row_text
from alignlab.data.view import CompletionView, Piece, RowView
from alignlab.errors import ConfigError, DataError

EVIL = '<script>alert("x")</script> & <|eos|'
ROWS = [
    {"prompt": f"question {n} ", "chosen": f"good {EVIL} {n}\n", "rejected": f"bad\x1b[31m {n}"}
    for n in range(4)
]
COMMON = ["backbone=tiny", "data.validation=0", "data.test=0", "tokens=dialogue"]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "pairs, and 'more'.jsonl"  # what a command line would have to quote
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return str(file)


def show(file, *overrides, rows=3, ids=False, html=None, split="preference", row=None):
    return preview(file, [*COMMON, *overrides], rows=rows, ids=ids, html=html, split=split, row=row)


@pytest.mark.slow
def test_a_pipe_gets_every_token_quoted_and_no_escape(pairs, capsys):
    assert show(pairs, rows=4) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert '"bad\\x1b[31m 0" <|eos|>' in re.sub(r"\n    end     ", " ", out)
    assert out.count("row ") == 4
    assert "rank 0 (best) · " in out
    assert "line 1" in out


@pytest.mark.slow
def test_ids_are_shown_on_demand(pairs, capsys):
    show(pairs, rows=1)
    assert ":2" not in capsys.readouterr().out
    show(pairs, rows=1, ids=True)
    out = capsys.readouterr().out
    assert "<|bos|>:1 " in out  # the byte tokenizer: pad 0, bos 1, eos 2
    assert "<|eos|>:2" in out


@pytest.mark.slow
def test_sft_shows_what_it_imitates(pairs, capsys):
    show(pairs, split="sft", rows=1)
    out = capsys.readouterr().out
    assert "good <script>" in out
    assert "bad" not in out


@pytest.mark.slow
def test_the_limits_of_the_configuration_cut(pairs, capsys):
    show(pairs, "tokens.max_prompt=5", "tokens.max_completion=4", rows=1)
    out = capsys.readouterr().out
    assert re.search(r"prompt · 5 tokens, \d+ cut on the left", out)
    assert re.search(r"4 tokens, 4 targets · \d+ cut on the right, so no end", out)


@pytest.mark.slow
def test_a_row_by_its_number(pairs, capsys):
    show(pairs, row=2, rows=1)
    out = capsys.readouterr().out
    assert "row 2" in out
    assert "row 0" not in out
    with pytest.raises(DataError, match=r"--row 9: split 'preference' of .* has 4 rows"):
        show(pairs, row=9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "at least one row"),
        ({"row": -1}, "counted from 0"),
        ({"split": "prefrence"}, r"the splits are.*Did you mean 'preference'"),
        ({"split": "pretrain"}, "makes its own vocabulary"),
    ],
)
def test_what_cannot_be_shown_is_refused(pairs, options, message):
    with pytest.raises(ConfigError, match=message):
        show(pairs, **options)


@pytest.mark.slow
def test_an_empty_split_and_bare_prompts_say_so(tmp_path, pairs):
    with pytest.raises(DataError, match="split 'test' has no rows"):
        show(pairs, split="test")
    bare = tmp_path / "prompts.jsonl"
    bare.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with pytest.raises(DataError, match=r"prompts without completions.*--split preference"):
        show(str(bare), split="sft")
    assert show(str(bare)) == 0


@pytest.mark.slow
def test_a_template_of_the_configuration_is_used(tmp_path, capsys, pairs):
    chat = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    chat.write_text(json.dumps({"messages": messages}) + "\n")
    show(str(chat), "backbone.template=dialogue", split="sft")
    out = capsys.readouterr().out
    assert '"User: hi\\n\\nAssistant:"' in out
    assert '" hello"' in out
    assert "template dialogue" in out


class Page(HTMLParser):
    """What a browser would make of the page: tags, texts of the tokens, attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tokens, self.depth, self.links = [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append((tag, named))
        self.links += [v for k, v in attributes if k in ("href", "src", "action")]
        if tag == "span" and "data-i" in named:
            self.tokens.append((named["class"], named["data-i"], ""))
            self.depth = 1
        elif self.depth and tag not in ("wbr",):
            self.depth += 1

    def handle_endtag(self, tag):
        self.depth = max(0, self.depth - 1)

    def handle_data(self, data):
        if self.depth:
            kind, number, text = self.tokens[-1]
            self.tokens[-1] = (kind, number, text + data)


@pytest.mark.slow
def test_the_page_is_whole_and_harmless(pairs, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert show(pairs, rows=4, html=str(target)) == 0
    assert capsys.readouterr().out == f"page: {target}\n"
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1  # ours
    assert page.links == []
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "\x1b" not in text
    assert "default-src 'none'" in text
    assert "width=device-width" in text
    assert "prefers-color-scheme:dark" in text
    boxes = [named for _, named in page.tags if named.get("class") == "k"]
    assert len(boxes) == 4 * 3  # a prompt and two completions each
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    written = "".join(token for _, _, token in page.tokens).replace("·", " ")
    assert EVIL in written
    assert "bad⟨U+001B⟩[31m" in written
    assert not any(tag == "input" and "checked" in named for tag, named in page.tags)
    show(pairs, rows=1, ids=True, html=str(target))
    tags = Page(target.read_text(encoding="utf-8")).tags
    assert any(tag == "input" and "checked" in named for tag, named in tags)


@pytest.mark.slow
def test_tokens_of_the_page_are_those_of_training(pairs, tmp_path):
    from alignlab.data.template import Tokenization
    from alignlab.models.tiny import byte_tokenizer

    target = tmp_path / "page.html"
    show(pairs, rows=1, html=str(target))
    page = Page(target.read_text(encoding="utf-8"))
    shown = [int(i) for _, numbers, _ in page.tokens for i in numbers.split("+")]
    from alignlab.commands.data_setup import Setup

    group = next(Setup.of(pairs, COMMON).data.stream("preference"))
    made = Tokenization(byte_tokenizer(), 512, 256).group(group, 0)
    assert shown == [t for part in (made.prompt, *made.completions) for t in part.tolist()]


# --- on a screen ----------------------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_colours_only_on_a_screen_that_wants_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour(Screen())
    assert not has_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour(Screen())


def test_a_screen_gets_no_control_character_of_the_data():
    pieces = (
        Piece((1,), "<|bos|>", "prompt", special=True),
        Piece((5,), "\x1b]0;owned\x07", "prompt"),
        Piece((6,), "a\nb  c", "prompt"),
    )
    completion = CompletionView("", (Piece((7,), "x", "masked"),), 1, 0, 0)
    view = RowView(0, "i\x1b", "f\x1b[2J", "demonstration", pieces, 3, 0, (completion,))
    text = row_text(view, ids=True, colour=True)
    assert re.findall(r"\x1b(?!\[[\d;]*m)", text) == []  # nothing but colours
    assert "\x07" not in text
    assert "⟨U+001B⟩]0;owned⟨U+0007⟩" in text
    assert "NOTHING TO LEARN FROM" in text
    assert "a↵" in text
