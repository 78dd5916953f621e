"""The page in a real browser, used as a person would use it: by keyboard, on a phone, on paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import chromium
import pytest

from alignlab import spec
from alignlab.compose import compose
from alignlab.report.analysis import analyse
from alignlab.report.live import LiveState
from alignlab.report.page import build_report, render
from alignlab.report.table import read_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.BINARY is None, reason=chromium.REASON),
]

SEEN = "(e) => e.getClientRects().length > 0"
# Contrast of every text that can be seen against what lies behind it, by WCAG 2.2's formula.
CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, below) =>
    [...[0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])), 1];
  const behind = (e) => {
    const layers = [];
    for (let x = e; x; x = x.parentElement) layers.push(rgba(getComputedStyle(x).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !e.getClientRects().length || e.closest("script,style,option")) continue;
    const svg = e.closest("svg");
    const style = getComputedStyle(e);
    const back = behind(svg ? svg.parentElement : e);
    const front = over(rgba(svg ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    count += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([ratio.toFixed(2), e.tagName, text.slice(0, 30)]);
  }
  return { count, bad: bad.slice(0, 10) };
})()"""


@pytest.fixture(scope="module")
def address(store):
    return build_report("demo", store).as_uri()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with chromium.Chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture
def browser(started, address):
    """The page, newly opened, without votes."""
    started.open(address)
    started.js("localStorage.clear(); sessionStorage.clear()")
    started.open(address)
    yield started
    assert started.problems() == []


def seen(browser, selector: str) -> int:
    return browser.js(f"[...document.querySelectorAll({selector!r})].filter({SEEN}).length")


def test_charts_are_drawn_and_nothing_is_loaded(browser, address):
    sizes = browser.js(
        "[...document.querySelectorAll('figure > svg')].map((s) => "
        "{const b = s.getBBox(); return [b.width, b.height]})"
    )
    assert len(sizes) == 12  # plane, rewards, length, cost, six policies, SFT, reward model
    assert all(width > 100 and height > 60 for width, height in sizes)
    points = browser.js(
        "[...document.querySelectorAll('[data-figure=frontier] svg [data-m]')]"
        ".filter((g) => g.getBBox().width + g.getBBox().height > 0).length"
    )
    assert points > 8 * 4  # a cross, seeds, a mark and a name for each of eight methods
    assert browser.requests() == [address]


def test_a_chip_hides_its_method_everywhere(browser):
    before = seen(browser, '[data-m="dpo"]')
    browser.js("document.querySelector('.chips [data-method=dpo]').focus()")
    browser.key(" ")
    assert before > 10
    assert seen(browser, '[data-m="dpo"]') == 0
    assert seen(browser, '[data-figure=frontier] [data-m="kto"]') > 0
    assert seen(browser, 'table.ranking tbody tr[data-m="kto"]') == 1
    assert browser.js("document.querySelector('[data-method=dpo]').ariaPressed") == "false"
    browser.js("document.getElementById('all').click()")
    assert seen(browser, '[data-m="dpo"]') == before


def test_the_seed_filter_leaves_one_seed(browser):
    choose = "((s) => {s.value = '1'; s.dispatchEvent(new Event('change'))})"
    browser.js(f"{choose}(document.getElementById('seed'))")
    assert seen(browser, '[data-s="0"]') == 0
    assert seen(browser, "#run-evaluate-1a-dpo") == 1
    assert seen(browser, '[data-figure=frontier] [data-s="1"]') == 6  # a dot per trained method
    assert browser.js("document.getElementById('sample-seed').value") == "1"
    assert "evaluate-1a" in browser.js("document.querySelector('.card .run').hash")


def test_headings_sort_by_keyboard(browser):
    gold = "[...document.querySelectorAll('table.ranking tbody tr')].map((r) => r.dataset.m)"
    assert browser.js(gold)[0] == "ppo"
    browser.js("document.querySelectorAll('table.ranking thead button')[1].focus()")
    browser.key("Enter")
    head = "document.querySelectorAll('table.ranking thead th')[1].getAttribute('aria-sort')"
    assert browser.js(head) == "descending"
    browser.key("Enter")
    assert browser.js(head) == "ascending"
    assert browser.js(gold)[0] == "sft"
    assert browser.js("document.querySelectorAll('table.ranking [aria-sort]').length") == 1


def test_search_leaves_the_prompts_with_the_words(browser):
    browser.js("document.getElementById('search').focus()")
    browser.call("Input.insertText", text="having &")
    where = browser.js("document.getElementById('where').textContent")
    found = int(re.match(r"1 of (\d+) with “having &”", where)[1])
    assert 0 < found < 30
    assert browser.js("document.querySelector('.prompt mark').textContent") == "Having &"
    browser.js("document.querySelector('#browser [data-step]').focus()")
    browser.key("ArrowRight")
    assert browser.js("document.getElementById('where').textContent").startswith("2 of ")
    browser.js(
        "((s) => {s.value = 'zzz'; s.dispatchEvent(new Event('input'))})"
        "(document.getElementById('search'))"
    )
    assert browser.js("document.getElementById('where').textContent") == "0 of 30"


def test_texts_of_models_are_text(browser):
    assert browser.js("document.querySelectorAll('main script:not([type])').length") == 0
    shown = browser.js("document.querySelector('#sheet .card p').textContent")
    assert shown.endswith("<script>alert('x')</script> & done.")


def test_a_sample_has_an_address_of_its_own(browser):
    browser.js("location.hash = '#row-evaluate-1a-kto-7'; new Promise((r) => setTimeout(r, 50))")
    assert browser.js("document.getElementById('row-evaluate-1a-kto-7') !== null")
    assert browser.js("document.getElementById('sample-seed').value") == "1"
    browser.js("document.querySelector('#row-evaluate-1a-kto-7 .run').click()")
    place = "document.getElementById('run-evaluate-1a-kto').getBoundingClientRect().top"
    for _ in range(40):  # the page glides there
        browser.js("new Promise((r) => setTimeout(r, 50))")
        if 0 < browser.js(place) < 500:
            break
    assert 40 < browser.js(place) < 500  # below the bar of filters
    browser.js("document.querySelector('tr[data-m=ppo] a.number').click()")
    assert browser.js("new Promise((r) => setTimeout(() => r("
                      "document.getElementById('config-ppo').open), 50))")  # fmt: skip


def vote(browser, *keys: str) -> None:
    browser.js("document.getElementById('vote-start').focus()")
    browser.key("Enter")
    for key in keys:
        browser.key(key)


def ballots(browser) -> list[dict]:
    return browser.js("JSON.parse(localStorage.getItem('alignlab votes: demo')).ballots")


def test_votes_by_keyboard_become_preference_pairs(browser, store):
    vote(browser)
    blind = browser.js("document.getElementById('booth').innerText")
    assert not re.search(r"PPO|DPO|KTO|SFT|gold|proxy", blind)
    assert "Answer 1" in blind
    for key in ("ArrowLeft", "ArrowRight", "t", "s", "1", "2", "ArrowLeft", "u"):
        browser.key(key)
    found = ballots(browser)
    assert len(found) == 6  # seven votes, one taken back
    first, second, tie, skip, one, two = found
    assert (first["result"], second["result"]) == (first["methods"][0], second["methods"][1])
    assert (tie["result"], skip["result"]) == ("tie", "skip")
    assert (one["result"], two["result"]) == (one["methods"][0], two["methods"][1])
    assert len({(b["prompt"], b["seed"]) for b in found}) == 6
    browser.key("r")
    table = browser.js("document.querySelector('table.votes').innerText")
    assert "95 % interval" in table
    browser.key("d")
    path = browser.downloaded("votes.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4
    for line, ballot in zip(lines, (first, second, one, two), strict=True):
        assert line["chosen_method"] == ballot["result"] != line["rejected_method"]
        row = next(
            r
            for r in read_study("demo", store).runs[line["chosen_run"]].lines("samples.jsonl")
            if r["prompt_id"] == line["prompt_id"]
        )
        assert (line["prompt"], line["chosen"]) == (row["prompt"], row["completion"])
    assert preference_pairs(path) == {(x["prompt"], x["chosen"], x["rejected"]) for x in lines}
    path.unlink()


def preference_pairs(path) -> set[tuple[str, str, str]]:
    """What a preference stage would read with ``data.path=FILE``."""
    wanted = [f"data.path={path}", "data.validation=0", "data.test=0"]
    config = compose(["pipeline=preference", *wanted])
    groups = spec.build(spec.parse(config["data"], "data")).load("preference")
    assert all(group.verdict.kind == "ranking" for group in groups)
    order = [sorted(range(2), key=lambda i, g=group: g.verdict.ranks[i]) for group in groups]
    return {(g.prompt, *(g.completions[i] for i in o)) for g, o in zip(groups, order, strict=True)}


def test_all_answers_at_once(browser):
    vote(browser, "ArrowLeft")
    browser.js("((s) => {s.value = '1'; s.dispatchEvent(new Event('change'))})"
               "(document.querySelector('#booth select'))")  # fmt: skip
    assert browser.js("document.querySelectorAll('#booth .card').length") == 8
    browser.key("8")
    browser.key("9")  # there is no ninth answer
    found = ballots(browser)
    assert len(found) == 2
    assert found[1]["result"] == found[1]["methods"][7]
    assert len(set(found[1]["methods"])) == 8
    browser.key("r")
    browser.key("d")
    path = browser.downloaded("votes.jsonl")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1 + 7
    path.unlink()


def test_votes_are_kept_and_the_order_with_them(browser, address):
    vote(browser, "ArrowLeft", "ArrowRight")
    texts = "[...document.querySelectorAll('#booth .card p')].map((p) => p.textContent)"
    before = browser.js(texts)
    browser.key("Escape")
    assert seen(browser, "#booth") == 0
    browser.open(address)
    vote(browser)
    assert browser.js(texts) == before
    assert len(ballots(browser)) == 2
    assert "2 of 60" in browser.js("document.querySelector('#booth [role=status]').textContent")


def test_the_order_hides_the_methods(browser):
    """Shuffled per prompt: every method is on the left about as often as on the right."""
    vote(browser, *["ArrowLeft"] * 40)
    left = [b["methods"][0] for b in ballots(browser)]
    right = [b["methods"][1] for b in ballots(browser)]
    assert len(set(left)) >= 6
    assert len(set(right)) >= 6
    pairs = {tuple(sorted(b["methods"])) for b in ballots(browser)}
    assert len(pairs) == 28  # of 8 methods: each pair comes once before any comes twice


def test_wilson_interval_is_scipys(browser):
    from scipy.stats import binomtest

    # The page's script is one function; what it shows is read instead of called.
    vote(browser, *["ArrowLeft"] * 30, "r")
    rows = browser.js(
        "[...document.querySelectorAll('table.votes tbody tr')]"
        ".map((r) => [...r.cells].slice(1).map((c) => c.textContent))"
    )
    assert sum(float(r[1]) for r in rows) == 30
    for votes, won, _, interval, chance in rows:
        wanted = binomtest(int(won), int(votes)).proportion_ci(method="wilson")
        assert interval == f"{wanted.low:.0%} – {wanted.high:.0%}".replace("%", " %")
        assert chance == "50 %"


def test_focus_can_be_seen_and_skips_to_the_results(browser):
    browser.key("Tab")
    assert browser.js("document.activeElement.className") == "skip"
    assert browser.js("document.activeElement.getBoundingClientRect().left") >= 0
    for _ in range(3):
        browser.key("Tab")
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    unreachable = browser.js(
        "[...document.querySelectorAll('a[href], button, select, input, summary')]"
        ".filter((e) => e.tabIndex < 0).length"
    )
    assert unreachable == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(browser, address, dark):
    browser.open(address, dark=dark)
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.js("document.querySelector('.chips button').click()")  # what is switched off, too
    found = browser.js(CONTRASTS)
    assert found["count"] > 500
    assert found["bad"] == []
    page = browser.js("getComputedStyle(document.body).backgroundColor")
    assert page == ("rgb(18, 21, 26)" if dark else "rgb(252, 252, 250)")
    vote(browser)
    assert browser.js(CONTRASTS)["bad"] == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out(browser, address, width):
    browser.open(address, width)
    wide = "document.documentElement.scrollWidth"
    assert browser.js(wide) == width
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.js(wide) == width
    vote(browser, "r")
    assert browser.js(wide) == width


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext: apt install poppler")
def test_print_has_everything_and_no_buttons(browser, tmp_path):
    path = tmp_path / "page.pdf"
    path.write_bytes(browser.pdf())
    command = ["pdftotext", "-layout", str(path), "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = " ".join(text.split())
    for words in ("PPO has the highest", "Ranking", "What could be wrong", "evaluate-1a-dpo"):
        assert words in text, words
    assert '"learning_rate": 5e-05' in text  # configurations are printed open
    for control in ("Show all", "1 of 30", "Skip to the results"):
        assert control not in text, control


def test_a_running_study_reloads_and_forgets_nothing(started, store, tmp_path):
    state = LiveState(done=12, total=34, running=2, failed=0)
    html = render(analyse(read_study("demo", store)), tmp_path, state)
    assert "12 of 34" in html
    path = tmp_path / "index.html"
    path.write_text(re.sub(r'data-live="\d+"', 'data-live="1"', html), encoding="utf-8")
    started.open(path.as_uri())
    started.js("document.querySelector('[data-method=dpo]').click()")
    started.js("document.querySelectorAll('table.ranking thead button')[1].click()")
    started.js("scrollTo(0, 700)")
    for _ in range(2):  # the reload comes after three seconds without a key or a move
        started._events.clear()
        started.wait("Page.loadEventFired")
        started.js("new Promise((r) => setTimeout(r, 100))")
        assert started.js("document.querySelector('[data-method=dpo]').ariaPressed") == "false"
        assert started.js("document.querySelectorAll('table.ranking [aria-sort]').length") == 1
        assert abs(started.js("scrollY") - 700) < 3
    vote(started)
    started._events.clear()
    started.js("new Promise((r) => setTimeout(r, 5500))")
    assert not [e for e in started._events if e.get("method") == "Page.loadEventFired"]
    assert started.problems() == []


def test_sixty_methods(started, tmp_path):
    from fake_many import write_many

    store = write_many(tmp_path, methods=60, seeds=3)
    path = build_report("many", store)
    assert path.stat().st_size < 5_000_000
    for width in (360, 1280):
        started.open(path.as_uri(), width)
        assert started.js("document.documentElement.scrollWidth") == width
        assert started.js("document.querySelectorAll('table.ranking tbody tr').length") == 61
    assert started.problems() == []
