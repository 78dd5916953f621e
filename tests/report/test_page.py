from __future__ import annotations

import base64
import csv
import hashlib
import re
import time
import xml.etree.ElementTree as ET

import pytest
from fake_study import FakeStore, write_json, write_run, write_study

from alignlab.report.analysis import analyse
from alignlab.report.page import build_report
from alignlab.report.summary import text_summary
from alignlab.report.table import read_study
from alignlab.report.verdict import amount, digits_for, p_text, plain, signed, verdict


@pytest.fixture(scope="module")
def page(store):
    return build_report("demo", store)


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


def rows(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_page_is_self_contained(html):
    assert not re.findall(r"https?:|(?<![:\w])//[a-z]+\.", html)
    assert not re.findall(r"<link|<img|<iframe|@import|\bsrc=|fetch\(|XMLHttpRequest", html)
    assert not re.findall(r"url\((?!#)", html)


def test_only_the_page_s_own_script_may_run(html):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    script = re.search(r"<script>(.*?)</script>", html, flags=re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert not re.findall(
        r"<[^>]*\son[a-z]+=", re.sub(r"<script.*?</script>", "", html, flags=re.S)
    )


def test_everything_from_the_runs_is_escaped(html):
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; done." in html
    assert "It is &lt;b&gt;not&lt;/b&gt; a" in html
    assert html.count("<script") == html.count("</script>") == 2  # the data and the page's own


@pytest.mark.slow
def test_verdict_has_the_numbers_of_methods_csv(store, page, html):
    best = max(
        (r for r in rows(page.parent / "methods.csv") if r["best_of"] == "1"),
        key=lambda r: float(r["gold"]),
    )
    first = verdict(analyse(read_study("demo", store)))[0]
    numbers = [float(x.replace("−", "-")) for x in re.findall(r"[+−]?\d+\.\d+", first)]
    wanted = (
        "gold",
        "gold_low",
        "gold_high",
        "gold_over_sft",
        "gold_over_sft_low",
        "gold_over_sft_high",
    )
    assert numbers == [round(float(best[key]), 2) for key in wanted]
    assert first.startswith("On 60 held-out prompts × 2 training seeds, PPO has the highest gold")
    shown = re.search(r'<h1 id="verdict">(.*?)</h1>', html, flags=re.S)[1]
    assert re.sub(r"<[^>]+>", "", shown).replace("\u00a0", " ") == first


def test_gold_in_methods_csv_is_the_plain_mean(store, page):
    for row in rows(page.parent / "methods.csv"):
        samples = [r for r in rows(page.parent / "samples.csv") if r["method"] == row["method"]]
        assert len(samples) == 120
        mean = sum(float(r["gold"]) for r in samples) / 120
        assert float(row["gold"]) == pytest.approx(mean, abs=1e-5)
        assert float(row["gold_low"]) < mean < float(row["gold_high"])


def test_kl_is_unclamped_and_analytic_for_best_of_n(page):
    found = {r["method"]: r for r in rows(page.parent / "methods.csv")}
    assert float(found["best-of-8"]["kl"]) == pytest.approx(1.204442, abs=1e-5)  # log 8 − 7/8
    assert found["best-of-8"]["kl_is_analytic_upper_bound"] == "True"
    assert float(found["sft"]["kl"]) == 0
    assert found["dpo"]["kl_is_analytic_upper_bound"] == "False"


def test_differences_csv_has_every_pair_once(page):
    found = rows(page.parent / "differences.csv")
    assert len({frozenset((r["a"], r["b"])) for r in found}) == len(found) == 8 * 7 // 2
    for row in found:
        assert float(row["p"]) <= float(row["holm_p"])
        assert float(row["low"]) <= float(row["gold_difference"]) <= float(row["high"])


def test_cost_csv_has_every_run_once(page, store):
    found = rows(page.parent / "cost.csv")
    assert len({r["run"] for r in found}) == len(found) == len(read_study("demo", store).runs)
    assert {r["run"] for r in found if r["shared"] == "True"} >= {
        "sft-0a",
        "annotate-1a",
        "reward-0a",
    }


def test_missing_run_is_on_the_page(html):
    doubts = html[html.index('id="doubts"') :]
    assert "the run folder preference-1a-simpo does not exist" in doubts


def test_all_sections_and_all_methods_are_there(html):
    sections = re.findall(r'<section id="([^"]+)">', html)
    assert sections == [
        "ranking", "frontier", "optimisation", "length", "tuning", "curves", "cost", "wins",
        "samples", "doubts", "provenance",
    ]  # fmt: skip
    navigation = re.search(r'<nav aria-label="Sections">(.*?)</nav>', html)[1]
    assert re.findall(r'href="#([^"]+)"', navigation) == sections
    for method in ("sft", "best-of-8", "dpo", "ipo-mean", "kto", "orpo", "ppo", "grpo"):
        assert f'id="config-{method}"' in html
        assert f'<section class="card" data-m="{method}"' in html


@pytest.mark.slow
def test_a_study_with_everything_has_every_section(tmp_path):
    write_study(tmp_path, prompts=12, grids=True, judged=True, benchmarked=True, searched=True)
    page = build_report("demo", FakeStore(tmp_path))
    html = page.read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([^"]+)">', html)
    assert sections == [
        "ranking", "frontier", "optimisation", "judging", "benchmarks", "length", "tuning",
        "curves", "cost", "wins", "samples", "doubts", "provenance",
    ]  # fmt: skip
    links_lead_somewhere(html)
    for stem in ("judging", "benchmarks", "reward_models"):
        assert (page.parent / "tables" / f"{stem}.parquet").is_file()
    for name in ("judging", "benchmarks", "calibration"):
        assert (page.parent / f"{name}.pdf").is_file()
    assert page.stat().st_size < 5_000_000


def links_lead_somewhere(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), [i for i in ids if ids.count(i) > 1][:5]
    lost = {
        target
        for target in re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
        if target not in set(ids)
    }
    assert lost == set()


@pytest.mark.slow
def test_a_section_with_nothing_to_show_is_left_out(small):
    for name in ("preference", "ppo", "grpo", "sft", "reward"):
        for file in small.root.glob(f"{name}-*/metrics.jsonl"):
            file.write_text("", encoding="utf-8")
    html = build_report("demo", small).read_text(encoding="utf-8")
    assert 'id="curves"' not in html
    assert 'href="#curves"' not in html


def test_ids_are_unique_and_links_lead_somewhere(html):
    links_lead_somewhere(html)


def test_every_number_leads_to_a_run_folder(html, page):
    links = re.findall(r'<th scope="row"><a href="([^"#]+)">', html)
    assert len(links) == 2 * 17  # sft, annotate, reward, 6 policies, 8 evaluations, per seed
    assert all((page.parent / link / "record.json").is_file() for link in links)
    table = html[html.index('<table class="sortable ranking"') :].split("</table>")[0]
    for row in re.findall(r"<tr data-m=.*?</tr>", table, flags=re.S):
        assert row.count('class="number" href="#config-') >= 4
    ppo = html[html.index('id="config-ppo"') :].split("</details>")[0]
    assert re.findall(r'href="#(run-[^"]+)"', ppo) == [
        "run-evaluate-0a-ppo", "run-ppo-0a-ppo", "run-evaluate-1a-ppo", "run-ppo-1a-ppo",
    ]  # fmt: skip
    configuration = re.findall(r'href="#(cfg-[^"]+)"', ppo)[1]
    shown = html[html.index(f'id="{configuration}"') :].split("</details>")[0]
    assert "kl_coef" in shown


def test_a_run_shows_record_configuration_and_command(html):
    row = html[html.index('id="run-evaluate-1a-dpo"') :].split("</tr>")[0]
    assert "&quot;reference_nll&quot;: 3.11" in row
    assert 'href="#cfg-' in row
    assert "<code>alignlab run</code>" in row  # of env.json; the study's command is another
    assert 'href="#run-preference-1a-dpo"' in row


def test_figures_stand_beside_the_page(page):
    for name in ("frontier", "rewards", "length", "cost", "curve-dpo"):
        assert (page.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.parse(page.parent / f"{name}.svg").getroot().tag.endswith("svg")
    for name in ("frontier", "rewards", "length", "cost", "curves"):
        content = (page.parent / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content  # embedded, as TrueType (type 42)
        assert b"/Type3" not in content


@pytest.mark.slow
def test_figures_of_a_former_report_are_removed(small):
    folder = build_report("demo", small).parent
    (folder / "curve-gone.png").write_bytes(b"old")
    (folder / "tables" / "gone.csv").write_bytes(b"old")
    build_report("demo", small)
    assert not (folder / "curve-gone.png").exists()
    assert not (folder / "tables" / "gone.csv").exists()


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(page, html, store):
    before = {p.name: p.read_bytes() for p in page.parent.glob("*.*")}
    assert build_report("demo", store).read_text(encoding="utf-8") == html
    assert {p.name: p.read_bytes() for p in page.parent.glob("*.*")} == before


def test_page_of_a_study_without_any_evaluation(small):
    write_json(
        small.studies / "bare" / "study.json", {"jobs": [{"seed": 0, "stages": {"sft": "sft-0a"}}]}
    )
    html = build_report("bare", small).read_text(encoding="utf-8")
    assert "nothing to rank" in html
    assert "nothing to rank" in " ".join(text_summary("bare", small).split())


@pytest.mark.slow
def test_page_without_baseline_audit_or_kl(small):
    for run in small.root.glob("evaluate-*-dpo"):
        text = (run / "samples.jsonl").read_text(encoding="utf-8")
        (run / "samples.jsonl").write_text(
            re.sub(r'"(audit|kl|proxy)": [^,}]+', r'"\1": null', text), encoding="utf-8"
        )
    jobs = [{"seed": s, "stages": {"e": f"evaluate-{s}a-dpo"}} for s in (0, 1)]
    write_json(small.studies / "bare" / "study.json", {"jobs": jobs})
    html = build_report("bare", small).read_text(encoding="utf-8")
    assert "the reference itself was not evaluated" in html
    assert "not in the evaluation: audit, proxy, kl" in html


@pytest.mark.slow
def test_text_summary(store):
    text = text_summary("demo", store)
    lines = text.splitlines()
    assert lines[0].startswith("On 60 held-out prompts")
    assert sum(line.startswith(("PPO ", "SFT ", "best of 8 ")) for line in lines) == 3
    assert "! missing run" in text
    assert max(map(len, lines)) <= 110


def test_verdict_says_what_is_not_distinguishable(tmp_path):
    jobs = []
    for seed in (0, 1):
        sft = write_run(tmp_path, "sft", f"{seed}", label="SFT", inputs={})
        stages = {}
        for label, shift in (("SFT", 0.0), ("DPO", 0.3), ("KTO", 0.301)):
            policy = (
                sft
                if label == "SFT"
                else write_run(
                    tmp_path,
                    "preference",
                    f"{seed}{label.lower()}",
                    label=label,
                    inputs={"reference": sft},
                )
            )
            noise = {"SFT": 0.0, "DPO": 0.1, "KTO": -0.1}[label]
            rows = [
                {
                    "prompt_id": str(i),
                    "prompt": "p",
                    "completion": "a b",
                    "tokens": 2,
                    "finished": True,
                    "kl": 0.0,
                    "gold": 0.1 * i + shift + noise * (-1) ** i,
                    "audit": shift,
                    "proxy": shift,
                }
                for i in range(20)
            ]
            stages[label] = write_run(
                tmp_path,
                "evaluate",
                f"{seed}{label.lower()}",
                label=label,
                samples=rows,
                inputs={"policy": policy, "reference": sft},
            )
        jobs.append({"seed": seed, "stages": stages})
    write_json(tmp_path / "studies" / "s" / "study.json", {"jobs": jobs})
    text = " ".join(verdict(analyse(read_study("s", FakeStore(tmp_path)))))
    assert "KTO has the highest gold reward" in text
    assert "+0.30 [+0.2" in text
    assert "It is not distinguishable from DPO, the next one" in text


def test_how_numbers_are_written():
    assert plain(-0.123) == "−0.12"
    assert plain(-0.001) == "0.00"
    assert plain(float("nan")) == "—"
    assert (signed(0.1), signed(-0.1)) == ("+0.10", "−0.10")
    assert [digits_for(e) for e in (0.0, 0.5, 0.02, 0.004, 30)] == [2, 1, 2, 3, 1]
    assert (p_text(0.0028), p_text(0.049), p_text(None)) == ("< 0.01", "0.05", "—")
    assert (amount(0), amount(1234567), amount(None)) == ("0", "1.23 M", "—")


@pytest.mark.long
def test_a_thousand_runs_are_reported_in_twenty_seconds(tmp_path):
    write_study(tmp_path, seeds=64, missing=False)
    runs = sum(1 for folder in tmp_path.iterdir() if (folder / "record.json").is_file())
    assert runs > 1000
    began = time.process_time()  # not the clock of a busy machine
    path = build_report("demo", FakeStore(tmp_path))
    assert time.process_time() - began < 20
    assert path.stat().st_size < 5_000_000
    assert "64 training seeds" in path.read_text(encoding="utf-8")
