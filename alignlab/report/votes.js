// Blind voting: methods hidden and in an order of their own per prompt; the votes are preferences.
const SHOWN = ["two at a time", "all at once"];
const booth = data && {
  box: $("#booth"), kept: keeper("localStorage", `alignlab votes: ${data.study}`),
  state: null, ballot: null, revealed: false,
  get open() { return !this.box.hidden; },
  load() {
    const found = this.kept.get();
    this.state = found && Array.isArray(found.ballots) ? found
      : { salt: Math.random().toString(36).slice(2), all: false, ballots: [] };
    this.state.ballots = this.state.ballots.filter((b) => data.prompts.some((p) => p.id === b.prompt && p.seeds[b.seed]));
  },
  /** Prompts and seeds that the filters leave, with the rows of the methods that are shown. */
  items() {
    const wanted = seed.value === "" || !data.seeds.includes(Number(seed.value)) ? null : seed.value;
    return samples.left.flatMap((i) => Object.keys(data.prompts[i].seeds)
      .filter((one) => wanted === null || one === wanted)
      .map((one) => ({ prompt: data.prompts[i], seed: one,
        rows: rowsOf(data.prompts[i], one).filter((row) => !hidden.has(name(row.method))) })))
      .filter((item) => item.rows.length > 1);
  },
  /** A number that nobody chose, the same for the same words and voter (FNV-1a, then mixed). */
  chance(...words) {
    let hash = 2166136261;
    for (const letter of [this.state.salt, ...words].join("\n")) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
    hash = Math.imul(hash ^ (hash >>> 15), 2246822507);
    return (hash ^ (hash >>> 13)) >>> 0;
  },
  cast(item) { return this.state.ballots.filter((b) => b.prompt === item.prompt.id && b.seed === item.seed); },
  /** The next ballot: the prompt with fewest votes, and of its pairs the one met least often. */
  next() {
    const key = (item) => [this.cast(item).length, this.chance(item.prompt.id, item.seed)];
    const queue = this.items().map((item) => ({ item, key: key(item) }))
      .sort((a, b) => a.key[0] - b.key[0] || a.key[1] - b.key[1]).map((x) => x.item);
    const met = new Map();
    for (const b of this.state.ballots) for (const pair of pairs([...b.methods].sort()))
      met.set(pair.join("\n"), (met.get(pair.join("\n")) ?? 0) + 1);
    for (const item of queue) {
      const round = this.cast(item).length;
      const order = (list) => list.map((row) => [this.chance(item.prompt.id, item.seed, String(round), name(row.method)), row])
        .sort((a, b) => a[0] - b[0]).map((x) => x[1]);
      if (this.state.all) {
        if (round === 0) return { item, rows: order(item.rows) };
        continue;
      }
      const done = new Set(this.cast(item).map((b) => [...b.methods].sort().join("\n")));
      const open = pairs(item.rows).map((pair) => ({ pair, id: pair.map((row) => name(row.method)).sort().join("\n") }))
        .filter(({ id }) => !done.has(id))
        .map(({ pair, id }) => ({ pair, key: [met.get(id) ?? 0, this.chance(item.prompt.id, item.seed, id)] }))
        .sort((a, b) => a.key[0] - b.key[0] || a.key[1] - b.key[1]);
      if (open.length) return { item, rows: order(open[0].pair) };
    }
    return null;
  },
  start() {
    this.load();
    this.revealed = false;
    $("#sheet").hidden = true;
    $(".controls", browser).hidden = true;
    this.box.hidden = false;
    this.show();
    this.box.focus();
    this.box.scrollIntoView({ block: "nearest" });
  },
  stop() {
    this.box.hidden = true;
    this.box.replaceChildren();
    $("#sheet").hidden = false;
    $(".controls", browser).hidden = false;
    $("#vote-start").focus();
  },
  vote(result) {
    if (!this.ballot || this.revealed) return;
    const { item, rows } = this.ballot;
    if (typeof result === "number" && result >= rows.length) return;
    this.state.ballots.push({ prompt: item.prompt.id, seed: item.seed, methods: rows.map((row) => name(row.method)),
      result: typeof result === "number" ? name(rows[result].method) : result, at: new Date().toISOString() });
    this.keep();
  },
  undo() {
    if (this.state.ballots.pop()) { this.revealed = false; this.keep(); }
  },
  keep() { this.kept.set(this.state); this.show(); this.box.focus(); },
  reveal() { this.revealed = true; this.show(); this.box.focus(); },
  show() {
    this.ballot = this.next();
    if (!this.ballot) this.revealed = true;
    this.box.replaceChildren(...(this.revealed ? this.result() : this.paper()));
  },
  button(text, key, act, kind = "") {
    return make("button", { type: "button", className: kind, onclick: act, "aria-keyshortcuts": key }, text, " ",
      make("kbd", {}, { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" }[key] ?? key));
  },
  tail() {
    const own = this.button("Undo", "u", () => this.undo());
    own.disabled = !this.state.ballots.length;
    return own;
  },
  progress() {
    const items = this.items();
    const round = items.length ? Math.min(...items.map((item) => this.cast(item).length)) : 0;
    const done = items.filter((item) => this.cast(item).length > round).length;
    const count = (word) => this.state.ballots.filter((b) => b.result === word).length;
    const many = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
    const text = `${done} of ${items.length}${round ? `, round ${round + 1}` : ""}; ${many(this.state.ballots.length, "vote")}, `
      + `${many(count("tie"), "tie")}, ${count("skip")} skipped`;
    return [make("progress", { max: items.length || 1, value: done, "aria-label": "Votes of this round" }),
      make("span", { className: "quiet", role: "status" }, text)];
  },
  paper() {
    const { item, rows } = this.ballot;
    const two = rows.length === 2;
    const mode = make("select", { "aria-label": "Answers at a time", onchange: (event) => {
      this.state.all = event.target.value === "1"; this.keep(); } },
      ...SHOWN.map((text, i) => make("option", { value: String(i), selected: Number(this.state.all) === i }, text)));
    const cards = rows.map((row, i) => make("section", { className: "card" },
      make("h4", {}, `Answer ${i + 1}`), make("p", { dir: "auto" }, row.text.trim()),
      make("footer", {}, this.button(two ? `Answer ${i + 1} is better` : "The best",
        two ? ["ArrowLeft", "ArrowRight"][i] : String(i + 1), () => this.vote(i), "primary"))));
    const note = this.kept.lasting ? "Votes stay in this browser."
      : "This browser keeps nothing for this page: save the votes before you leave it.";
    return [make("div", { className: "controls" }, make("h3", {}, "Which answer is better?"), mode, ...this.progress()),
      make("p", { className: "prompt", dir: "auto" }, item.prompt.text, " ", make("span", { className: "quiet" }, "…")),
      make("div", { className: two ? "cards two" : "cards" }, ...cards),
      make("div", { className: "controls" }, this.button("Tie", "t", () => this.vote("tie")),
        this.button("Skip", "s", () => this.vote("skip")), this.tail(),
        this.button("Reveal", "r", () => this.reveal()), this.button("Leave", "Escape", () => this.stop())),
      make("p", { className: "quiet" }, `${note} Left and right arrows or numbers choose.`)];
  },
  /** Votes per method; a tie is shared out evenly between the answers of its ballot. */
  tally() {
    const found = new Map();
    for (const b of this.state.ballots) if (b.result !== "skip") for (const method of b.methods) {
      const own = found.get(method) ?? { ballots: 0, points: 0, chance: 0 };
      own.ballots += 1;
      own.chance += 1 / b.methods.length;
      own.points += b.result === "tie" ? 1 / b.methods.length : Number(b.result === method);
      found.set(method, own);
    }
    return [...found].map(([method, own]) => ({ method, ...own, interval: wilson(own.points, own.ballots) }))
      .sort((a, b) => b.points / b.ballots - a.points / a.ballots);
  },
  /** Decided votes that chose the answer with the highest gold reward of their ballot. */
  agreement() {
    let [same, all] = [0, 0];
    for (const b of this.decided()) {
      const golds = b.rows.map((row) => row.metrics[0]);
      if (golds.includes(null) || new Set(golds).size < 2) continue;
      all += 1;
      same += Number(golds[b.methods.indexOf(b.result)] === Math.max(...golds));
    }
    return [same, all];
  },
  decided() {
    return this.state.ballots.filter((b) => !["tie", "skip"].includes(b.result)).map((b) => {
      const prompt = data.prompts.find((p) => p.id === b.prompt);
      const rows = rowsOf(prompt, b.seed);
      return { ...b, text: prompt.text, rows: b.methods.map((m) => rows.find((row) => name(row.method) === m)) };
    }).filter((b) => b.rows.every(Boolean));
  },
  result() {
    const share = (value) => `${Math.round(100 * value)} %`;
    const label = (id) => data.methods.find((m) => m.id === id)?.label ?? id;
    const head = make("tr", {}, ...["Method", "Votes", "Preferred", "Share", "95 % interval", "By chance"]
      .map((text) => make("th", { scope: "col" }, text)));
    const rows = this.tally().map((own) => make("tr", {}, make("th", { scope: "row" }, label(own.method)),
      ...[own.ballots, Number(own.points.toFixed(1)), share(own.points / own.ballots),
        own.interval.map(share).join(" – "), share(own.chance / own.ballots)].map((text) => make("td", {}, String(text)))));
    const [same, all] = this.agreement();
    const gold = all ? `Of ${all} decided votes, ${same} chose the answer with the highest gold reward (${wilson(same, all).map(share).join(" – ")}). ` : "";
    const ties = this.state.ballots.filter((b) => b.result === "tie").length;
    const save = this.button("Save votes.jsonl", "d", () => this.save(), "primary");
    save.disabled = !this.decided().length;
    const on = this.button("Vote on", "Enter", () => { this.revealed = false; this.show(); this.box.focus(); });
    on.disabled = !this.ballot;
    return [make("div", { className: "controls" }, make("h3", {}, "Your votes"), ...this.progress()),
      rows.length ? make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Votes per method" },
        make("table", { className: "votes" }, make("thead", {}, head), make("tbody", {}, ...rows)))
        : make("p", {}, "No votes yet."),
      make("p", { className: "quiet" }, `${gold}Intervals are Wilson's, with one observation per vote; ties are shared. `
        + `votes.jsonl holds one preference pair per decision${ties ? `; ties (${ties}) are not in it, a pair needs a winner` : ""}.`),
      make("div", { className: "controls" }, save, on, this.tail(),
        this.button("Clear", "x", () => this.clear()), this.button("Leave", "Escape", () => this.stop()))];
  },
  clear() {
    if (!confirm("Delete all votes of this study from this browser?")) return;
    this.kept.set(null); this.load(); this.revealed = false; this.show(); this.box.focus();
  },
  /** One JSON line per answer that was voted better than another. */
  lines() {
    return this.decided().flatMap((b) => {
      const best = b.rows[b.methods.indexOf(b.result)];
      return b.rows.filter((row) => row !== best).map((row) => JSON.stringify({
        prompt: b.text, chosen: best.text, rejected: row.text, chosen_method: b.result, rejected_method: name(row.method),
        chosen_run: best.run, rejected_run: row.run, prompt_id: b.prompt, seed: Number(b.seed), voted: b.at }));
    });
  },
  save() {
    const url = URL.createObjectURL(new Blob([`${this.lines().join("\n")}\n`], { type: "application/jsonl" }));
    make("a", { href: url, download: "votes.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  },
  key(event) {
    if (event.target.tagName === "SELECT" || event.altKey || event.metaKey || event.ctrlKey) return;
    const two = this.ballot?.rows.length === 2;
    const acts = this.revealed
      ? { d: () => this.decided().length && this.save(), x: () => this.clear() }
      : { t: () => this.vote("tie"), s: () => this.vote("skip"), r: () => this.reveal(),
          ...(two ? { ArrowLeft: () => this.vote(0), ArrowRight: () => this.vote(1) } : {}) };
    if (this.revealed && this.ballot && event.target === this.box) acts.Enter = () => { this.revealed = false; this.show(); this.box.focus(); };
    const common = { u: () => this.undo(), Escape: () => this.stop() };
    const digit = /^[1-9]$/.test(event.key) && !this.revealed ? () => this.vote(Number(event.key) - 1) : null;
    const act = acts[event.key] ?? common[event.key] ?? digit;
    if (!act) return;
    event.preventDefault();
    act();
  },
};
/** All pairs of a list, in its order. */
function pairs(list) { return list.flatMap((a, i) => list.slice(i + 1).map((b) => [a, b])); }
/** Wilson's 95 % score interval of a share. */
function wilson(points, count) {
  const [z, p] = [1.959964, points / count];
  const middle = (p + z * z / (2 * count)) / (1 + z * z / count);
  const half = z * Math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}
if (booth) {
  const start = $("#vote-start");
  start.hidden = data.methods.length < 2;
  start.addEventListener("click", () => booth.start());
  booth.box.addEventListener("keydown", (event) => booth.key(event));
  watchers.push(() => { if (booth.open) booth.show(); });
}
// What the reader chose is the same after a reload; a running study's page reloads when idle.
const view = keeper("sessionStorage", `alignlab view: ${location.pathname}`);
let idle = Date.now();
function remember() {
  const order = sortable.map((table) => [...table.tHead.rows[0].cells].findIndex((c) => c.hasAttribute("aria-sort")));
  view.set({ hidden: [...hidden], seed: seed.value, search: samples?.search.value, prompt: samples?.prompt.value,
    sampleSeed: samples?.seed.value, top: scrollY, open: $$("details[open][id]").map((d) => d.id),
    sorted: order.map((c, i) => [c, c >= 0 && sortable[i].tHead.rows[0].cells[c].getAttribute("aria-sort") === "descending"]) });
}
function recall() {
  const old = view.get();
  const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
  if (!old || !again) return;
  old.hidden.forEach((m) => chips.some((c) => c.dataset.method === m) && hidden.add(m));
  const choose = (select, value) => [...select.options].some((o) => o.value === value) && (select.value = value);
  choose(seed, old.seed);
  if (samples) {
    samples.search.value = old.search ?? "";
    samples.narrow();
    choose(samples.prompt, old.prompt);
    choose(samples.seed, old.sampleSeed);
  }
  old.sorted.forEach(([c, descending], i) => c >= 0 && sortable[i]?.tHead.rows[0].cells[c] && sort(sortable[i], c, descending));
  old.open.forEach((id) => { const d = document.getElementById(id); if (d) d.open = true; });
  requestAnimationFrame(() => scrollTo({ top: old.top, behavior: "instant" }));
}
addEventListener("pagehide", remember);
recall();
filter();
if (location.hash) follow();
const seconds = Number(document.documentElement.dataset.live);
const running = $(".running[data-beat]");
if (seconds && running) { // the command renews the beat every minute, also while it writes nothing else
  const heed = () => {
    const silent = Math.round((Date.now() / 1000 - Number(running.dataset.beat)) / 60);
    if (silent < 5) return;
    running.classList.add("stale");
    running.textContent = `no sign of the study's command for ${silent} minutes, so it may have been stopped; this page is as it was then, and alignlab watch says how things stand`;
  };
  heed();
  setInterval(heed, 15000);
}
if (seconds) {
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"])
    addEventListener(kind, () => { idle = Date.now(); }, { passive: true });
  const typing = () => /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  setInterval(() => {
    const busy = booth?.open || typing() || !getSelection().isCollapsed || document.hidden || Date.now() - idle < 3000;
    if (!busy && performance.now() > 1000 * seconds) location.reload();
  }, 1000);
}
