# %% [markdown]
# # Read a study
#
# `alignlab run` leaves a folder with a page of tables and figures. This notebook starts where the page ends: from the study's
# folder to the methods, their rows and numbers, and from there to statistics and figures of your own, with the same functions
# that the page is made of.
#
# To have something to read, a small study is run first: two objectives, three seeds, the random `tiny` model, and as gold reward
# how close an answer is to three words. Its numbers mean nothing. **For your own study set `store` and `name`**, and leave this cell out.

# %%
import contextlib
import io
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib_inline.backend_inline import set_matplotlib_formats

from alignlab.cli import main
from alignlab.report import statistics as st
from alignlab.report.analysis import analyse, cells_of
from alignlab.report.curves import read_curves
from alignlab.report.figures import curve, rewards
from alignlab.report.folders import prompt_key
from alignlab.report.style import looks
from alignlab.report.table import read_study
from alignlab.run import Store

store, name = Store(Path(tempfile.mkdtemp())), "small"
words = [
    "-m", "experiment=smoke", "pipeline=preference", "objective=dpo,ipo", "seed=0,1,2", f"study={name}", f"store={store.root}",
    "reward@gold=length", "gold.target_words=3", "audit=null", "size.evaluate.prompts=48", "size.preference.steps=30",
    "stages.preference.optimizer.learning_rate=0.003", "report=false", "tracking=disabled", "engine.progress=false",
]  # fmt: skip
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    assert main(["run", *words]) == 0
set_matplotlib_formats("png")
plt.rcParams.update({"figure.dpi": 72, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Methods
#
# A *method* is one way to make a policy: equal configuration but for the seed. `rows` are its held-out samples, as they stand in
# the `samples.jsonl` of its evaluation runs.

# %%
study = read_study(name, store)
for method in study.methods:
    print(f"{method.label:<12} seeds {method.seeds}  {sum(map(len, method.rows.values()))} rows  {method.settings}")
row = study.methods[0].rows[0][0]
print({key: row[key] for key in ("prompt_id", "sample", "tokens", "gold", "kl")})

# %% [markdown]
# ## The page's numbers
#
# `analyse` computes them all: intervals over seeds and prompts, paired differences, Holm's correction, ranks.

# %%
analysis = analyse(study)
for score in analysis.scores:
    gold = score.metrics["gold"]
    print(f"{score.method.label:<12} gold {gold.value:+.3f} [{gold.low:+.3f}, {gold.high:+.3f}]  ranks {score.ranks[0]} to {score.ranks[1]}")
for pair in analysis.pairs:
    found = pair.gold.interval
    print(f"{pair.a.label} − {pair.b.label}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], Holm p = {pair.holm:.3f}")

# %% [markdown]
# ## Its figures
#
# Every figure of the page is a function of the analysis.

# %%
found = looks([score.method for score in analysis.scores])
rewards(analysis, found)

# %%
trained = next(score.method for score in analysis.scores if not score.method.baseline)
curves = read_curves(trained.label, {seed: run for seed, run in trained.policies.items() if run})
curve(curves, found[trained.id])

# %% [markdown]
# ## A statistic of your own
#
# `cells_of` gives any recorded metric as a table of seeds × prompts per method, on axes that all methods share, so that
# differences are paired by themselves. Here: is the gain over SFT another one at long prompts than at short ones? (Splitting by
# how well SFT did would be a trap: the halves would be chosen by the very samples that the gain is counted from.)

# %%
cells, seeds, prompts = cells_of(study.methods)
base = next(method for method in study.methods if method.baseline)
others = [method for method in study.methods if not method.baseline]
length = {prompt_key(row): len(row["prompt"]) for row in base.rows[seeds[0]]}
order = np.argsort([length[prompt] for prompt in prompts], kind="stable")
halves = {"short prompts": order[: len(order) // 2], "long prompts": order[len(order) // 2 :]}

figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
for (half, chosen), shift, colour in zip(halves.items(), (0.1, -0.1), ("#c43", "#36c"), strict=True):
    for place, method in enumerate(others):
        gain = cells["gold"][method.id] - cells["gold"][base.id]
        found = st.hierarchical_bootstrap(gain[:, chosen])
        bars = [[found.value - found.low], [found.high - found.value]]
        ax.errorbar(found.value, place + shift, xerr=bars, fmt="o", color=colour, label=half if place == 0 else None)
ax.axvline(0, color="#999", linewidth=0.8)
ax.set(yticks=range(len(others)), yticklabels=[m.label for m in others], ylim=(-0.6, len(others) - 0.4), xlabel="gold over SFT, with 95 % intervals")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The smallest effect that this study could have found, with four chances in five:

# %%
print(f"{analysis.detectable:.3f} gold" if analysis.detectable else "unknown: nothing was compared")
