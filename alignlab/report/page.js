"use strict"; // the two scripts of the page are one function
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
/** An element with properties and children; text is always set as text, never as HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
/** What a page may keep between visits; where a browser forbids it, nothing is kept, and it says so. */
function keeper(storage, key) {
  let memory = null;
  let lasting = true;
  const attempt = (action) => {
    try { return action(window[storage]); } catch { lasting = false; return null; }
  };
  return {
    get: () => JSON.parse(attempt((store) => store.getItem(key)) ?? memory ?? "null"),
    set: (value) => {
      memory = JSON.stringify(value);
      attempt((store) => store.setItem(key, memory));
    },
    get lasting() { return lasting; },
  };
}
// Sorting: a click on a heading orders the rows by data-v; missing values stay last.
function sort(table, column, descending) {
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.v;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
}
const sortable = $$("table.sortable");
for (const table of sortable) {
  table.tHead.addEventListener("click", (event) => {
    const head = event.target.closest("th");
    if (head && event.target.closest("button"))
      sort(table, head.cellIndex, head.getAttribute("aria-sort") !== "descending");
  });
}
// Filters: a chip hides its method everywhere, the seed shows one training seed only.
const hidden = new Set();
const rule = document.head.appendChild(make("style"));
const seed = $("#seed");
const chips = $$(".chips button");
const watchers = [];
function filter() {
  for (const chip of chips) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.method)));
  const rules = [...hidden].map((m) => `[data-m="${CSS.escape(m)}"]{display:none!important}`);
  if (seed.value !== "") rules.push(`[data-s]:not([data-s="${CSS.escape(seed.value)}"]){display:none!important}`);
  rule.textContent = rules.join("");
  $("#all").hidden = hidden.size === 0;
  const count = $("#count");
  if (count) count.textContent = `${chips.length - hidden.size} of ${chips.length} shown`;
  watchers.forEach((watch) => watch());
}
for (const chip of chips)
  chip.addEventListener("click", () => {
    const method = chip.dataset.method;
    hidden.has(method) ? hidden.delete(method) : hidden.add(method);
    filter();
  });
$("#all").addEventListener("click", () => { hidden.clear(); filter(); chips[0].focus(); });
seed.addEventListener("change", filter);
// Samples: one prompt and seed at a time; a search leaves the prompts that hold the words.
const block = $("#samples-data");
const data = block ? JSON.parse(block.textContent) : null;
const browser = $("#browser");
const name = (number) => data.methods[number].id;
/** Rows of a prompt and seed: {method, line, text, metrics, finished, thought, run}. */
function rowsOf(prompt, seed) {
  return (prompt.seeds[seed] ?? []).map(([method, line, text, ...rest]) => ({
    method, line, text, metrics: rest.slice(0, data.metrics.length),
    finished: rest[data.metrics.length] === 1, thought: rest[data.metrics.length + 1] ?? null,
    run: data.runs[method][seed],
  }));
}
/** A text with every occurrence of the searched words marked. */
function marked(text, words) {
  if (!words) return [text];
  const parts = [];
  const low = text.toLowerCase();
  let at = 0;
  // Where lower case changes the length of a text, places in it are not places in the text.
  for (let next = low.length === text.length ? low.indexOf(words) : -1; next >= 0; next = low.indexOf(words, at)) {
    parts.push(text.slice(at, next), make("mark", {}, text.slice(next, next + words.length)));
    at = next + words.length;
  }
  return [...parts, text.slice(at)];
}
function marker(method) {
  return $(`.chips [data-method="${CSS.escape(name(method))}"] svg`).cloneNode(true);
}
function card(row, words) {
  const footer = make("footer");
  data.metrics.forEach(([title, digits], i) => {
    const value = row.metrics[i];
    if (value === null) return;
    const number = value.toFixed(digits).replace(/^-(?!0(\.0*)?$)/, "−").replace(/^-/, "");
    footer.append(make("span", {}, `${title} `, make("b", {}, number)));
  });
  if (!row.finished) footer.append(make("span", { className: "cut" }, "cut off"));
  footer.append(make("a", { className: "run", href: `#run-${row.run}` }, `row ${row.line}`));
  const text = make("p", { dir: "auto" }, ...marked(row.text.trim(), words));
  const head = make("h4", {}, marker(row.method), data.methods[row.method].label);
  const thought = row.thought === null ? [] : [make("details", { className: "thought" },
    make("summary", {}, "thought"), make("p", { dir: "auto" }, row.thought))];
  const section = make("section", { className: "card", id: `row-${row.run}-${row.line}` }, head, ...thought, text, footer);
  section.dataset.m = name(row.method);
  return section;
}
const samples = browser && {
  prompt: $("#prompt"), seed: $("#sample-seed"), search: $("#search"), sheet: $("#sheet"),
  get words() { return this.search.value.trim().toLowerCase(); },
  /** Numbers of the prompts that the search leaves. */
  get left() { return [...this.prompt.options].map((o) => Number(o.value)); },
  narrow() {
    const kept = this.prompt.value;
    const fits = (prompt) => !this.words || [prompt.text, ...Object.values(prompt.seeds).flat().map((r) => r[2])]
      .some((text) => text.toLowerCase().includes(this.words));
    this.prompt.replaceChildren(...data.prompts.flatMap((prompt, i) => {
      const line = prompt.text.replace(/\s+/g, " ").trim();
      const shown = line.length > 70 ? `${line.slice(0, 69)}…` : line;
      return fits(prompt) ? [make("option", { value: String(i) }, `${i + 1}. ${shown}`)] : [];
    }));
    if (this.left.includes(Number(kept))) this.prompt.value = kept;
    this.show();
  },
  show() {
    const all = seed.value === "" || !data.seeds.includes(Number(seed.value));
    this.seed.disabled = !all;
    if (!all) this.seed.value = seed.value;
    const found = this.left;
    const where = $("#where");
    if (!found.length) {
      this.sheet.replaceChildren(make("p", { className: "quiet" }, "No prompt or text has these words."));
      where.textContent = `0 of ${data.prompts.length}`;
      return;
    }
    const prompt = data.prompts[Number(this.prompt.value)];
    const cards = rowsOf(prompt, this.seed.value).map((row) => card(row, this.words));
    const asked = make("p", { className: "prompt", dir: "auto" }, ...marked(prompt.text, this.words), " ",
      make("span", { className: "quiet" }, "…"));
    this.sheet.replaceChildren(make("article", {}, asked, make("div", { className: "cards" }, ...cards)));
    const place = found.indexOf(Number(this.prompt.value)) + 1;
    const some = found.length < data.prompts.length ? ` with “${this.search.value.trim()}”` : "";
    where.textContent = `${place} of ${found.length}${some}`;
  },
  step(by) {
    const found = this.left;
    if (!found.length) return;
    const place = found.indexOf(Number(this.prompt.value));
    this.prompt.value = String(found[(place + by + found.length) % found.length]);
    this.show();
  },
  /** Show the row whose anchor was followed: #row-RUN-LINE. */
  find(run, line) {
    for (const [i, prompt] of data.prompts.entries())
      for (const one of Object.keys(prompt.seeds))
        if (rowsOf(prompt, one).some((row) => row.run === run && row.line === line)) {
          this.search.value = "";
          this.narrow();
          this.prompt.value = String(i);
          this.seed.value = one;
          this.show();
          return;
        }
  },
};
if (samples) {
  samples.prompt.addEventListener("change", () => samples.show());
  samples.seed.addEventListener("change", () => samples.show());
  samples.search.addEventListener("input", () => samples.narrow());
  for (const button of $$("[data-step]", browser))
    button.addEventListener("click", () => samples.step(Number(button.dataset.step)));
  browser.addEventListener("keydown", (event) => {
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.altKey || event.metaKey || event.ctrlKey) return;
    if (event.key === "ArrowLeft") samples.step(-1);
    if (event.key === "ArrowRight") samples.step(1);
  });
  watchers.push(() => samples.show());
}
// A link to something folded away opens it; a link to a sample shows its prompt.
function follow() {
  const target = decodeURIComponent(location.hash.slice(1));
  const row = /^row-(.+)-(\d+)$/.exec(target);
  if (row && samples && !document.getElementById(target)) samples.find(row[1], Number(row[2]));
  const element = target && document.getElementById(target);
  if (!element) return;
  for (let outer = element; outer; outer = outer.parentElement) if (outer.tagName === "DETAILS") outer.open = true;
  if (element.offsetParent !== null) element.scrollIntoView();
}
addEventListener("hashchange", follow);
// On paper nothing can be unfolded: the methods' runs and configurations are printed open.
const folded = new Set();
addEventListener("beforeprint", () => {
  const all = $$("details.unfold:not([open])");
  // A hundred configurations fill a hundred sheets: of a large study only the methods are opened.
  const some = all.length <= 60 ? all : all.filter((one) => !one.id.startsWith("cfg-"));
  for (const one of some) { one.open = true; folded.add(one); }
});
addEventListener("afterprint", () => { folded.forEach((one) => { one.open = false; }); folded.clear(); });
