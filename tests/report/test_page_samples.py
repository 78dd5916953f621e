"""The samples that the page carries: whole, bounded, chosen by nobody, and unable to break out."""

from __future__ import annotations

import json
import re

import pytest
from fake_study import write_lines

from alignlab.report import browser
from alignlab.report.analysis import analyse
from alignlab.report.elements import clean
from alignlab.report.exports import _samples
from alignlab.report.page import build_report
from alignlab.report.style import looks
from alignlab.report.table import read_study

NASTY = "</script><script>alert(1)</script><!-- \u2028 \x07 \x9f \u202e \ud83d é ok"


def block(html: str) -> dict:
    text = re.search(r'<script type="application/json" id="samples-data">(.*?)</script>', html)[1]
    return json.loads(text)


@pytest.fixture
def nasty(small):
    """A study one of whose completions and prompts try to leave their place."""
    for run in small.root.glob("evaluate-0a-dpo"):
        rows = [json.loads(x) for x in (run / "samples.jsonl").open(encoding="utf-8")]
        for row in rows:
            row["completion"] = NASTY
            row["prompt"] = NASTY
        write_lines(run / "samples.jsonl", rows)
    return small


@pytest.mark.slow
def test_no_text_leaves_its_place(nasty):
    html = build_report("demo", nasty).read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 2
    assert "\x07" not in html
    assert "\u202e" not in html
    found = block(html)
    texts = {row[2] for p in found["prompts"] for rows in p["seeds"].values() for row in rows}
    assert NASTY in texts  # votes are saved with the very text, whatever is in it


def test_clean_shows_what_is_no_character():
    assert clean("a\x07b\u202ec\ud83dd") == "a\\x07b\\u202ec\\ud83dd"
    assert clean("Ünïcode, 日本語, 👩\u200d👩\u200d👧, tab\t and\nline") == (
        "Ünïcode, 日本語, 👩\u200d👩\u200d👧, tab\t and\nline"
    )


@pytest.mark.slow
def test_data_are_the_rows_of_the_runs(store):
    study = read_study("demo", store)
    html = build_report("demo", store).read_text(encoding="utf-8")
    found = block(html)
    assert found["methods"][0]["id"] == "ppo"
    assert len(found["prompts"]) == browser.SHOWN_PROMPTS
    for prompt in found["prompts"][:5]:
        for seed, rows in prompt["seeds"].items():
            assert len(rows) == 8
            for method, line, text, gold, *_, tokens, finished in rows:
                run = study.runs[found["runs"][method][seed]]
                row = run.lines("samples.jsonl")[line - 1]
                assert row["prompt_id"] == prompt["id"]
                assert (row["completion"], row["tokens"]) == (text, tokens)
                assert row["gold"] == pytest.approx(gold, abs=1e-4)
                assert row["finished"] == bool(finished)


@pytest.mark.slow
def test_prompts_are_chosen_by_a_hash(store):
    """sha256 orders them, so a prompt is shown or not whatever its answers are."""
    import hashlib

    analysis = analyse(read_study("demo", store))
    wanted = sorted((f"r{i:03d}" for i in range(60)),
                    key=lambda k: hashlib.sha256(k.encode()).hexdigest())  # fmt: skip
    assert browser.chosen_prompts(analysis) == wanted[:30]


def test_what_is_shown_is_bounded(small, monkeypatch):
    analysis = analyse(read_study("demo", small))
    assert len(browser.browsed(analysis).prompts) == 12
    monkeypatch.setattr(browser, "SHOWN_ROWS", 12 * 8)  # one seed of two
    assert browser.browsed(analysis).seeds == (0,)
    monkeypatch.setattr(browser, "SHOWN_BYTES", 1)
    shown = browser.browsed(analysis)
    assert len(shown.prompts) == browser.FEWEST_PROMPTS
    note = browser.samples_note(analysis, shown)
    assert "3 of 12 held-out prompts" in note
    assert "1 of 2 training seeds" in note


def test_thoughts_stand_apart_from_answers(small):
    for run in small.root.glob("evaluate-0a-dpo"):
        rows = [json.loads(x) for x in (run / "samples.jsonl").open(encoding="utf-8")]
        rows = [{**row, "thinking": "<b>hm", "thinking_tokens": 3} for row in rows]
        write_lines(run / "samples.jsonl", rows)
    analysis = analyse(read_study("demo", small), draws=50)
    look = looks([score.method for score in analysis.scores])
    html = browser.samples(analysis, look, browser.browsed(analysis))
    found = block(html)
    names = [method["id"] for method in found["methods"]]
    after = 3 + len(found["metrics"])  # method, line and text; the metrics; whether it ended
    for prompt in found["prompts"]:
        for method, *rest in prompt["seeds"].get("0", []):
            thought = rest[after:]
            assert thought == (["<b>hm"] if names[method] == "dpo" else [])
    assert '<details class="thought"><summary>thought</summary><p>&lt;b&gt;hm</p></details>' in html
    rows = {(row["method"], row["seed"]): row for row in _samples(analysis)}
    assert (rows["dpo", 0]["thinking"], rows["dpo", 0]["thinking_tokens"]) == ("<b>hm", 3)
    assert rows["dpo", 1]["thinking"] is None
