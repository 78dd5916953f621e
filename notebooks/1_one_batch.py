# %% [markdown]
# # One batch under the lens
#
# Every alignment data set is the same thing here: *one prompt, k completions, and a verdict on them*. This notebook follows two
# such groups from their text to what a model computes with: tokens, one flat sequence without padding, positions, what every
# token may see, and which tokens a loss counts. The model is `backbone=tiny`, random and with one token per byte, so that
# everything fits into a picture.

# %%
import tempfile
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML

from alignlab import typed
from alignlab.compose import compose
from alignlab.data.group import CHOSEN_REJECTED, PromptGroup, Verdict
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.data.view import MEANING, Viewer
from alignlab.models.backbone import Backbone
from alignlab.models.load import BackboneConfig
from alignlab.objectives.stable import segment_sum

plt.rcParams.update({"figure.dpi": 72, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
config = typed.build(BackboneConfig, compose(["backbone=tiny"])["backbone"])
backbone = Backbone.load(config, Path(tempfile.mkdtemp()))
backbone.add("policy", source=None, trainable=True)

# %% [markdown]
# ## Two prompt groups
#
# The first has three completions and a ranking of them (rank 0 is best), as reward models are trained on; the second is a pair.

# %%
groups = [
    PromptGroup("The film", (" was warm.", " bored me.", " ended."), Verdict("ranking", ranks=(0, 2, 1))),
    PromptGroup("I left", (" smiling.", " early."), CHOSEN_REJECTED),
]
tokenization = Tokenization(backbone.tokenizer, max_prompt=16, max_completion=9)

# %% [markdown]
# ## What each token is to a loss
#
# The same view as `alignlab data preview`. A completion ends with EOS, once, unless it was cut at `max_completion`: then it has
# none, because the model must not learn to stop there.

# %%
COLOURS = {"prompt": "#dbe7f5", "target": "#d3ecd3", "end": "#7fc98f", "masked": "#e4e4e4", "cut": "#f6cfc8"}


def coloured(pieces):
    """Spans of tokens, each in the colour of its kind."""
    spans = (f'<span style="background:{COLOURS[p.kind]};color:#111;padding:1px">{escape(p.text)}</span>' for p in pieces)
    return '<code style="white-space:pre">' + " ".join(spans) + "</code>"


lines = []
for row, group in enumerate(groups):
    view = Viewer(tokenization).view(group, row)
    lines.append(f"<p>{coloured(view.prompt)}</p>")
    lines += [f"<p>&emsp;{coloured(c.pieces)} {escape(c.label)}, {c.targets} targets, {c.cut} cut</p>" for c in view.completions]
legend = " ".join(f'<span style="background:{COLOURS[k]};color:#111;padding:2px 6px">{k}: {MEANING[k]}</span>' for k in COLOURS)
HTML("".join(lines) + f"<p>{legend}</p>")

# %% [markdown]
# ## One flat sequence
#
# The groups are laid end to end, `prompt₁ c₁₁ c₁₂ c₁₃ prompt₂ c₂₁ c₂₂`, without padding. A prompt is there **once**, however many
# completions it has.

# %%
tokens = tokenization.groups(groups)
batch = flatten(tokens)
padded = sum(len(g.completions) for g in tokens) * max(len(g.prompt) + len(c) for g in tokens for c in g.completions)
print(f"{batch.tokens} tokens in the flat batch, {padded} in a padded one with a row per completion")
print(f"{batch.completions} completions, {len(batch.target_ids)} targets")

# %% [markdown]
# Positions of every completion continue from the end of its prompt, so each completion is where it would be alone. A target is
# predicted from the position before it; the first one of *every* completion from the last token of the shared prompt (the
# circles with several targets).

# %%
letters = [repr(backbone.tokenizer.decode([i]))[1:-1] if i > 2 else "□" for i in batch.input_ids.tolist()]
parts = [(span.prompt, "#8fb2dd") for span in batch.spans]
parts += [(c, "#8ecb9b") for span in batch.spans for c in span.completions]
figure, ax = plt.subplots(figsize=(11, 3), layout="constrained")
for (start, end), colour in sorted(parts):
    ax.bar(range(start, end), batch.position_ids[start:end] + 1, color=colour, width=0.9)
predictors, counts = batch.predictor_index.unique(return_counts=True)
ax.scatter(predictors, batch.position_ids[predictors] + 2, s=14 * counts, facecolors="none", edgecolors="#a33", label="predicts (size: how many targets)")
ax.set(xticks=range(batch.tokens), ylabel="position + 1", title="Positions of the flat batch: prompts blue, completions green")
ax.set_xticklabels(letters, fontfamily="monospace")
ax.legend(loc="upper left", frameon=False)
plt.show()

# %% [markdown]
# ## What a prediction sees
#
# Not drawn from the definition but measured: the gradient of the hidden state behind each target with respect to every token's
# embedding. Where it is zero, the token cannot be seen. A completion sees its prompt and itself, never a sibling or another group.

# %%
embeddings = []
with backbone.view("policy") as view:
    hook = view.model.get_input_embeddings().register_forward_hook(lambda module, args, output: embeddings.append(output))
    hidden = view.features(batch).at_targets  # (targets, hidden size)
    hook.remove()
    seen = torch.stack([
        torch.autograd.grad(h.sum(), embeddings[0], retain_graph=True)[0].abs().sum(-1).flatten() > 0 for h in hidden
    ])

figure, ax = plt.subplots(figsize=(8, 5.6), layout="constrained")
ax.imshow(seen, cmap="Blues", vmin=0, vmax=1.6, interpolation="nearest", aspect="auto")
ax.scatter(batch.predictor_index, range(len(seen)), s=6, color="#a33", label="predictor")
for (start, end), _ in parts:
    ax.axvline(start - 0.5, color="#999", linewidth=0.5)
for first in np.flatnonzero(np.diff(batch.target_completion, prepend=-1)):
    ax.axhline(first - 0.5, color="#999", linewidth=0.5)
ax.set(xlabel="token of the flat batch", ylabel="target", title="Blue: what the prediction of a target depends on")
ax.set_xticks(range(batch.tokens), letters, fontfamily="monospace")
ax.set_yticks(range(len(seen)), [backbone.tokenizer.decode([i]) if i > 2 else "□" for i in batch.target_ids.tolist()], fontfamily="monospace", fontsize=7)
ax.legend(loc="lower left", frameon=False)
plt.show()

# %% [markdown]
# ## The same numbers as one by one
#
# The layout changes how much is computed, not what: log-probabilities of the flat batch are those of every completion alone.

# %%
with backbone.view("policy") as view, torch.no_grad():
    together = segment_sum(view.logps(batch), batch.target_completion, batch.completions)
    alone = torch.stack([
        view.logps(flatten([one])).sum()
        for group in groups for one in tokenization.groups([PromptGroup(group.prompt, (c,)) for c in group.completions])
    ])
torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
for text, value in zip((c for g in groups for c in g.completions), together.tolist(), strict=True):
    print(f"log p({text!r} | prompt) = {value:.2f} nats")
