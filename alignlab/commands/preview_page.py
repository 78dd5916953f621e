"""The token view as one HTML page: no network, readable on a phone, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from alignlab.commands.preview_text import completion_facts, heading, prompt_facts
from alignlab.data.view import MEANING, Kind, Piece, RowView, visible

# No request can leave the page, whatever a text in the data contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--muted:#5d6673;--line:#d9dee4;--page:#fcfcfa;
--paper:#fff;--prompt:#e6eef7;--target:#dcf1dc;--end:#1f7a35;--endink:#fff;--masked:#ececec;
--cut:#fbe3df;--cutink:#8f2d1c;--focus:#0b5f8f}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--muted:#a3acb8;--line:#343b45;
--page:#12151a;--paper:#171b21;--prompt:#1d3147;--target:#1b3d25;--end:#7bd690;--endink:#0c1f11;
--masked:#2a2f36;--cut:#45231d;--cutink:#f0a797;--focus:#7cc0ea}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.2rem 1rem 6rem;background:var(--page);
color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.25rem;margin:0 0 .2rem;overflow-wrap:anywhere}
h2{font-size:.95rem;margin:0 0 .4rem;overflow-wrap:anywhere}
p{margin:.2rem 0}
.quiet,h3{color:var(--muted);font-size:.85rem;font-weight:400;margin:.7rem 0 .2rem}
header p.quiet{margin:0}
dl{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:.8rem 0;font-size:.82rem}
dl div{display:flex;gap:.4rem;align-items:baseline}dd{margin:0;color:var(--muted)}
label{font-size:.9rem;display:inline-flex;gap:.4rem;align-items:center;padding:.3rem 0}
section{margin:1.1rem 0;padding:.8rem .9rem;background:var(--paper);border:1px solid var(--line);
border-radius:8px}
.k{font:14px/1.9 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;
white-space:pre-wrap;margin:0;border-radius:6px}
.k:focus-visible,input:focus-visible{outline:2px solid var(--focus);outline-offset:3px}
.k span{padding:.1em 0;border-bottom:2px solid transparent;cursor:pointer}
.k span:nth-child(even){filter:brightness(.96)}
@media(prefers-color-scheme:dark){.k span:nth-child(even){filter:brightness(1.18)}}
.prompt{background:var(--prompt)}
.k .target,dt .target{background:var(--target);border-bottom:2px solid var(--end)}
.end{background:var(--end);color:var(--endink);font-weight:600}
.masked{background:var(--masked);color:var(--muted);font-style:italic}
.cut{background:var(--cut);color:var(--cutink);text-decoration:line-through}
.s{border-radius:4px;outline:1px dashed var(--muted);outline-offset:-1px;font-weight:600}
.k b{font-weight:400;opacity:.4}
.k .now{box-shadow:0 0 0 2px var(--focus)}
body:has(#ids:checked) .k span{display:inline-block}
body:has(#ids:checked) .k span::after{content:attr(data-i);font-size:.62em;opacity:.75;
vertical-align:sub;margin:0 .35em 0 .15em;text-decoration:none;display:inline-block}
#now{position:fixed;left:0;right:0;bottom:0;padding:.6rem 1rem;background:var(--paper);
border-top:1px solid var(--line);font-size:.85rem;overflow-wrap:anywhere;min-height:2.6rem}
@media print{#now,label{display:none}}
"""
SCRIPT = """
const out = document.getElementById('now'), idle = out.textContent;
const tokens = box => [...box.querySelectorAll('span')];
let now = null;
function show(token) {
  if (now) now.classList.remove('now');
  now = token;
  if (!token) { out.textContent = idle; return; }
  token.classList.add('now');
  const all = tokens(token.parentElement);
  const kind = token.className.split(' ')[0];
  out.textContent = 'id ' + token.dataset.i + ' · ' + token.dataset.t + ' · ' + kind +
    (token.classList.contains('s') ? ', special token' : '') +
    ' · piece ' + (all.indexOf(token) + 1) + ' of ' + all.length;
}
document.addEventListener('mouseover', e => {
  const token = e.target.closest('.k span');
  if (token) show(token);
});
document.addEventListener('click', e => show(e.target.closest('.k span')));
document.querySelectorAll('.k').forEach(box => {
  box.addEventListener('focus', () => {
    if (!now || now.parentElement !== box) show(box.firstElementChild);
  });
  box.addEventListener('keydown', e => {
    const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10}[e.key];
    const all = tokens(box);
    let place = all.indexOf(now);
    if (step) place += step;
    else if (e.key === 'Home') place = 0;
    else if (e.key === 'End') place = all.length - 1;
    else return;
    e.preventDefault();
    show(all[Math.max(0, Math.min(all.length - 1, place))]);
    now.scrollIntoView({block: 'nearest'});
  });
});
"""


def page(views: Sequence[RowView], *, title: str, facts: str, ids: bool) -> str:
    """Return a whole HTML document of the rows; ``ids`` shows token ids from the start."""
    named = "".join(
        f'<div><dt><span class="{kind}">{kind}</span></dt><dd>{escape(meaning)}</dd></div>'
        for kind, meaning in MEANING.items()
    )
    checked = " checked" if ids else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_plain(title)}: tokens</title><style>{STYLE}</style></head><body>
<header><h1>{_plain(title)}</h1><p class="quiet">{_plain(facts)}</p></header>
<dl>{named}<div><dt><span class="s">&lt;…&gt;</span></dt><dd>a special token</dd></div>
<div><dt>· ↵ ⇥</dt><dd>space, line break, tab</dd></div></dl>
<label><input type="checkbox" id="ids"{checked}> show token ids</label>
<main>{"".join(map(_section, views))}</main>
<div id="now" role="status" aria-live="polite">Point at a token, or tab to a text and use the \
arrow keys: its id is shown here.</div>
<script>{SCRIPT}</script></body></html>
"""


def _section(view: RowView) -> str:
    parts = [_tokens("prompt", prompt_facts(view), view.prompt)]
    for number, completion in enumerate(view.completions):
        name = f"completion {number}" if len(view.completions) > 1 else "completion"
        parts.append(_tokens(name, completion_facts(completion), completion.pieces))
    return f"<section><h2>{escape(heading(view))}</h2>{''.join(parts)}</section>"


def _tokens(name: str, facts: str, pieces: Sequence[Piece]) -> str:
    spans = "".join(map(_span, pieces))
    return (
        f"<h3>{escape(name)} · {escape(facts)}</h3>"
        f'<div class="k" tabindex="0" role="group" aria-label="tokens of the {escape(name)}">'
        f"{spans}</div>"
    )


def _span(piece: Piece) -> str:
    kind: Kind = piece.kind
    special = " s" if piece.special else ""
    ids = "+".join(map(str, piece.ids))
    said = escape("".join("·" if c == " " else visible(c) for c in piece.text))
    after = "\n" if "\n" in piece.text else "<wbr>" if piece.text.endswith(" ") else ""
    return (
        f'<span class="{kind}{special}" data-i="{ids}" data-t="{said}" title="id {ids}">'
        f"{''.join(map(_character, piece.text))}</span>{after}"
    )


def _character(character: str) -> str:
    """A character of a token; what cannot be seen as a faint sign."""
    if character == " ":
        return "<b>·</b>"
    return escape(character) if character.isprintable() else f"<b>{visible(character)}</b>"


def _plain(text: str) -> str:
    return escape("".join(map(visible, text)))
