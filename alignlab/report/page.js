"use strict";
// Sorting: a click on a heading orders the rows by data-v; missing values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (!head || !event.target.closest("button")) return;
    const column = head.cellIndex;
    const descending = head.getAttribute("aria-sort") !== "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  });
}
// Filter: a chip hides its method in every table, figure and sample.
const hidden = new Set();
const rule = document.head.appendChild(document.createElement("style"));
document.querySelector(".chips").addEventListener("click", (event) => {
  const chip = event.target.closest("button");
  if (!chip) return;
  const method = chip.dataset.method;
  hidden.has(method) ? hidden.delete(method) : hidden.add(method);
  chip.setAttribute("aria-pressed", String(!hidden.has(method)));
  rule.textContent = [...hidden].map((m) => `[data-m="${CSS.escape(m)}"]{display:none!important}`).join("");
});
// Samples: one prompt and seed at a time; arrow keys work inside the browser.
const browser = document.getElementById("browser");
if (browser) {
  const prompt = document.getElementById("prompt");
  const seed = document.getElementById("seed");
  const articles = [...browser.querySelectorAll("article")];
  const show = () => {
    for (const article of articles)
      article.hidden = article.dataset.prompt !== prompt.value || article.dataset.seed !== seed.value;
    document.getElementById("where").textContent = `${Number(prompt.value) + 1} of ${prompt.options.length}`;
  };
  const step = (by) => {
    const count = prompt.options.length;
    prompt.value = String((Number(prompt.value) + by + count) % count);
    show();
  };
  prompt.addEventListener("change", show);
  seed.addEventListener("change", show);
  for (const button of browser.querySelectorAll("[data-step]"))
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  browser.addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  show();
}
// A link to a closed <details> opens it.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", open);
open();
