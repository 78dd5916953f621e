"""The page in a real browser: no console errors, the filter, sorting and sample browser work."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from alignlab.report.page import build_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
)
ACTIONS = """<script>
addEventListener("error", (e) => { document.body.dataset.failed = e.message; });
addEventListener("load", () => {
  const click = (selector) => document.querySelector(selector).click();
  click('.chips [data-method="dpo"]');
  click('[data-step="1"]');
  document.querySelector("#browser button").dispatchEvent(
    new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
  click("table.ranking thead th:nth-child(2) button");
  click("table.ranking thead th:nth-child(2) button");
  const visible = (e) => e.getClientRects().length > 0;
  const result = {
    shown: [...document.querySelectorAll("article")].filter(visible).map((a) => a.dataset.prompt),
    where: document.getElementById("where").textContent,
    dpo: [...document.querySelectorAll('[data-m="dpo"]')].filter(visible).length,
    kto: [...document.querySelectorAll('[data-m="kto"]')].filter(visible).length > 0,
    first: document.querySelector("table.ranking tbody tr").dataset.m,
    wide: document.documentElement.scrollWidth <= innerWidth,
  };
  document.body.dataset.result = JSON.stringify(result);
});
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_page_works_in_a_browser(store, tmp_path, width):
    page = build_report("demo", store).read_text(encoding="utf-8")
    copy = tmp_path / "index.html"
    copy.write_text(page.replace("</body>", ACTIONS), encoding="utf-8")
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in done.stderr, [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    assert "data-failed" not in done.stdout
    found = re.search(r'data-result="([^"]+)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    result = found[1].replace("&quot;", '"')
    assert '"shown":["2"]' in result
    assert '"where":"3 of 30"' in result
    assert '"dpo":0' in result
    assert '"kto":true' in result
    assert '"first":"sft"' in result  # ascending by gold
    assert '"wide":true' in result  # nothing sticks out of the page
