"""Objectives: pure torch functions from log-probabilities or scores to one loss per example.

An objective receives tensors and hyperparameters, never a model, a batch or a configuration, and
never reduces over examples: the caller sums and divides by the count of the whole optimizer step,
so that accumulation, packing and sharding cannot change a loss.

**The signature is the declaration.** The annotation of the first parameter picks the view of the
data (`PairLogps`: pairs; `SingleLogps`: single completions with a thumb), a parameter
named ``reference`` asks for a pass of the frozen reference, and a parameter named ``kl_point`` asks
for KTO's statistic of the step. Hyperparameters are keyword-only and have no default: their values
live in ``conf/objective/*.yaml``. `alignlab.objectives.declaration.declaration` reads all
of this. So a new preference loss is one function and one yaml, and nothing else.

==============  ====================================================================
``likelihood``  negative log-likelihood (SFT, pretraining, the PTX term)
``ranking``     reward models: Bradley–Terry over all pairs, Plackett–Luce, top-one
``pairwise``    DPO, cDPO, rDPO, DPO-norm, IPO, ORPO, SimPO, hinge, SLiC
``unpaired``    KTO
``policy``      clipped surrogates (token, sequence), clipped value loss
``advantage``   GAE, whitening, group advantages, token weights
``divergence``  KL estimators, best-of-n KL, adaptive KL coefficient
``stable``      exp, log(1 − eˣ) and segment sums that stay finite in float32
==============  ====================================================================
"""
