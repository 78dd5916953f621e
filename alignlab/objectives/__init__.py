"""Objectives: pure torch functions from log-probabilities or scores to one loss per example.

An objective receives tensors and hyperparameters, never a model, a batch or a configuration, and
never reduces over examples: the caller sums and divides by the count of the whole optimizer step,
so that accumulation, packing and sharding cannot change a loss.

**The signature is the declaration.** The annotation of the first parameter picks the view of the
data (`PairLogps`: pairs; `SingleLogps`: single completions with a thumb; `GroupLogps`: all
completions of a prompt), a parameter named ``reference`` asks for a pass of the reference, and one
named ``kl_point`` or ``log_ratio_shift`` for KTO's or BCO's statistic of the step. Hyperparameters
are keyword-only and have no default: their values live in ``conf/objective/*.yaml``.
`alignlab.objectives.declaration.declaration` reads all of this, and the decorator ``called`` gives
the name in tables. So a new preference loss is one function and one yaml, and nothing else.

==============  ====================================================================
``likelihood``  negative log-likelihood (SFT, pretraining, the PTX term)
``ranking``     reward models: Bradley–Terry over all pairs, Plackett–Luce, top-one
``regression``  reward models of given scores: squared error, cross-entropy
``pairwise``    DPO, cDPO, rDPO, DPO-norm, IPO, ORPO, SimPO, hinge, SLiC
``penalized``   pairs and something more: CPO, DPO+NLL, DPOP, R-DPO
``anchored``    each answer against the reference by itself: APO, SPPO, Cal-DPO, DPO-Shift
``links``       other curves than DPO's or SimPO's: χPO, f-DPO, EXO, DiscoPOP, AlphaPO, SimPER
``unpaired``    KTO, BCO
``groupwise``   whole prompts: DPO-PL, RRHF, InfoNCA, NCA, EXO
``policy``      clipped surrogates (token, sequence), clipped value loss
``advantage``   GAE, whitening, group advantages, token weights
``divergence``  KL estimators, best-of-n KL, adaptive KL coefficient
``stable``      exp, log(1 − eˣ) and segment sums that stay finite in float32
==============  ====================================================================
"""
