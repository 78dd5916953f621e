"""Mutants that no test can tell from the code, by module and reason.

Every entry is verified in the other direction too: one that dies, or that no longer exists, makes
the test fail. "(2)" is the second such change in the function.
"""

from __future__ import annotations

VECTOR = "a vector has one dimension: 0 and −1 are the same"
MATRIX = "the last dimension of a matrix is 1 and −1"
SAME_SHAPE = "only shape, number format or device is read, and both have the same"
NUMBERS = (
    "a zero-dimensional tensor, or a number of numpy, computes and compares as the number does"
)
BOUNDARY = "on the boundary itself both branches give the same value"
NO_GRADIENT_ANYWAY = "the result is a comparison, which carries no gradient"
NEVER_READ = "the entries that differ are never read"
COST = "the same result, with more work"
WIDENED = "the other operand is float32, so the result is too"
CAST_LATER = "autograd casts a gradient, and an assignment its value, to the format it is meant for"
ORDER_OF_A_SET = "the order of what is searched, or multiplied, does not matter"
TWO_WAYS = (
    "repeated key heads and `enable_gqa` are two ways to the same numbers; CUDA alone prefers one"
)
ONE_SEQUENCE = "checked to hold one sequence: 0 and −1 are the same"
EXACTLY_ONE = "this branch or index is for exactly one block, where joining and −1 do the same"
CPU = "every device of the tests is a CPU"
SQUARE = "row kind 1: as many keys as queries, and one kind per block"
EMPTY_LISTS = "both lists are empty"
LIST_INDEX = "a list of indices selects as its tensor does"
CUT = "a slice that ends beyond the end is cut there"
INTEGERS = "small integers are exact, and 64 bits wide without being told"
LONE_COMPLETION = "a group of one has no spread: its advantage is masked below, NaN or not"
NEAREST_SIDE = (
    "G instead of V decides on which side of V_old the clipped value lies; where that differs,"
    " V's own error is the larger one either way"
)
LARGEST_TERM = "d/dm [m + log Σ exp(r − m)] = 0: the subtracted term needs no detach to be constant"
LOOKS_FURTHER = "looks at more of the vocabulary than it has to"
U_BELOW_ONE = (
    "u ≤ 1 − 2⁻⁵³ times the total rounds below the total, so the guard against u = 1 never acts"
)

EQUIVALENT: dict[str, dict[str, list[str]]] = {
    "objectives.advantage": {
        NUMBERS: [
            "gae: int(completion.bincount().max()) → completion.bincount().max()",
            "whiten: mean.to(x.dtype) → mean",
            "whiten: mean.to(x.dtype) → mean (2)",
            "whiten: torch.rsqrt(variance + epsilon).to(x.dtype) → torch.rsqrt(variance + epsilon)",
        ],
        "a longest completion of 0 or 1 tokens needs no doubling": ["gae: 0 → 1", "gae: 0 → -1"],
        "a doubling beyond the longest completion adds zeros": [
            "gae: step < longest → step <= longest"
        ],
        SAME_SHAPE: [
            "moments: x.sum() → x.mean()",
            "token_weights: tokens.sum() → tokens.mean()",
        ],
        VECTOR: ["equal_groups: 0 → -1", "equal_groups: 0 → -1 (2)"],
        NO_GRADIENT_ANYWAY: ["equal_groups: drop @torch.no_grad()"],
        LONE_COMPLETION: [
            "group_advantages: (size - 1).clamp(min=1) → size - 1",
            "group_advantages: (size - 1).clamp(min=1) → size - 1 (2)",
            "group_advantages: 1 → 0 (2)",
            "group_advantages: 1 → 0 (4)",
        ],
    },
    "objectives.divergence": {
        "the series is read within ±0.05 only, where neither bound acts": [
            "k3: 0.05 → 0.1",
            "k3: 0.05 → 0.1 (2)",
        ],
        BOUNDARY: ["k3: d.abs() < 0.05 → d.abs() <= 0.05"],
        "½d² is even in d, and its gradient is taken by name": [
            "token_kl: k2(new, reference) → k2(reference, new)"
        ],
    },
    "objectives.forgetting": {
        "a sum does not depend on the order of its terms": [
            "jensen_shannon: torch.logaddexp(start + weights[0], policy + weights[1]) → "
            "torch.logaddexp(policy + weights[1], start + weights[0])"
        ],
    },
    "objectives.groupwise": {
        VECTOR: ["rrhf: 0 → -1", "_log_softmax: 0 → -1"],
        LARGEST_TERM: ["_log_softmax: values.detach() → values"],
    },
    "objectives.pairwise": {
        SAME_SHAPE: [
            "pair_metrics: chosen → rejected (2)",
            "pair_metrics: chosen → rejected (3)",
        ],
    },
    "objectives.policy": {
        NEAREST_SIDE: ["clipped_value: values → returns"],
        NO_GRADIENT_ANYWAY: [
            "clip_fraction: importance_ratio(logps).detach() → importance_ratio(logps)",
            "weight_clip_fraction: importance_ratio(logps).detach() → importance_ratio(logps)",
        ],
    },
    "objectives.ranking": {
        VECTOR: [
            "top_one: 0 → -1",
            "_choice_losses: 0 → -1",
            "_choice_losses: 0 → -1 (2)",
            "_choice_losses: 0 → -1 (3)",
            "_choice_losses: 0 → -1 (4)",
        ],
        LARGEST_TERM: [
            "_choice_losses: reward.detach() → reward",
            "_choice_losses: below.detach() → below",
        ],
        NEVER_READ: [
            "_choice_losses: torch.zeros_like(reward, dtype=torch.int64)"
            " → torch.ones_like(reward, dtype=torch.int64)"
        ],
    },
    "objectives.stable": {
        BOUNDARY: ["log1mexp: x > -math.log(2.0) → x >= -math.log(2.0)"],
        VECTOR: ["segment_sum: 0 → -1"],
    },
    "tensors": {
        "the last field is `spans`, which no device holds": [
            "FlatBatch.to: in fields(self) → [:-1] of it",
            "FlatBatch.to: in moved.items() → [:-1] of it",
        ],
    },
    "data.pack": {
        INTEGERS: [
            "pack: np.asarray(…) without dtype=np.int64",
        ],
        NEVER_READ: [
            "pack: np.zeros(len(values), dtype=np.int64) → np.ones(len(values), dtype=np.int64)"
        ],
        "numpy reads the first letter of a kind": ["pack: 'stable' → 'stable_'"],
        NUMBERS: [
            "pack: begin.tolist() → begin",
            "pack: begin[1:].tolist() → begin[1:]",
            "pack: int(ordered[first]) → ordered[first]",
            "pack: int(taken.sum()) → taken.sum()",
            "pack: int(new[-1]) → new[-1]",
            "pack: int(new[-1]) → new[-1] (2)",
            "flatten: np.flatnonzero(prompt).tolist() → np.flatnonzero(prompt)",
        ],
        "any other number than the first size makes the first item the first of its size": [
            "pack: ordered[0] + 1 → ordered[0] - 1",
            "pack: 1 → 2 (2)",
        ],
        "an array of length 0 holds no numbers": [
            "pack: np.zeros(0, dtype=np.int64) → np.ones(0, dtype=np.int64)"
        ],
        COST: ["pack: drop usable = usable[room[usable] >= ordered[-1]]"],
        "the running sum is cut at the count as well": [
            "pack: np.minimum(room[usable] // size, count) → room[usable] // size"
        ],
        "a mask selects as the indices of its true entries do": [
            "flatten: np.flatnonzero(counted) → counted"
        ],
    },
    "data.order": {
        "the epoch beyond the end contributes its first 0 rows": [
            "step_rows: last - 1 → last",
            "step_rows: 1 → 0 (4)",
        ],
        CUT: ["step_rows: min(last - epoch * rows, rows) → last - epoch * rows"],
        "any number of digits between the noise of a float and 1/batch does": [
            "steps_of: 9 → 10",
            "steps_of: 9 → 8",
        ],
    },
    "models.logps": {
        "everything inside was cast to autocast's own format before": [
            "_TokenLogps.forward: drop with torch.autocast(hidden.device.type, enabled=False)"
        ],
        "int or float, Python divides and multiplies them alike": [
            "head_of: float(divisor) → divisor",
            "head_of: float(factor) → factor",
        ],
        ORDER_OF_A_SET: [
            "head_of: ('logit_scale', 'lm_head_multiplier') → ('lm_head_multiplier', 'logit_scale')"
        ],
        VECTOR: ["_run: 0 → -1 (3)"],
        "a column has one entry: 0 and −1 are the same": ["_Product.target: 0 → -1"],
        "times 1 changes nothing": [
            "_shape_logits: always scale != 1.0",
            "_Product.gradient: gradient.mul_(self.options.scale) if self.options.scale != 1.0"
            " else gradient → gradient.mul_(self.options.scale)",
        ],
        "no format has 31 bits": ["_Product.__init__: 32 → 31"],
        WIDENED: [
            "_Product.__init__: self.states.float() → self.states",
            "_Product.__init__: self.matrix[targets].float() → self.matrix[targets]",
            "_Product.__init__: self._bias[targets].float() → self._bias[targets]",
        ],
        MATRIX: [
            "_Product.__init__: -1 → 1",
            "_TokenLogps.forward: -1 → 1",
            "_TokenLogps.forward: -1 → 1 (2)",
        ],
        CUT: ["_Product.chunks: min(start + rows, total) → start + rows"],
        "target ids and options need no gradient": [
            "_TokenLogps.forward: 3 → 4",
            "_TokenLogps.forward: [1:3] → [1:]",
        ],
        "an entropy that nobody asked for is dropped by the caller": [
            "_TokenLogps.forward: torch.empty_like(logps) if options.entropy"
            " else logps.new_empty(0) → torch.empty_like(logps)",
            "_TokenLogps.forward: 0 → 1 (2)",
        ],
        SAME_SHAPE: [
            "_TokenLogps.forward: logps → lse (2)",
            "_TokenLogps.forward: logps → lse (3)",
        ],
        CAST_LATER: [
            "_TokenLogps.backward: (grad[:, None] * jacobian).to(hidden.dtype)"
            " → grad[:, None] * jacobian",
            "_TokenLogps.backward: (gradient @ product.matrix).to(hidden.dtype)"
            " → gradient @ product.matrix",
        ],
    },
    "models.noise": {
        CPU: [
            "EmbeddingNoise.draw: torch.from_numpy(scale).to(device, torch.float32)"
            " → torch.from_numpy(scale)"
        ],
    },
    "models.grouped_attention": {
        "the index of a layer is an integer, which torch's annotation does not say": [
            "grouped_attention: int(module.layer_idx) → module.layer_idx",
            "grouped_attention: int(module.layer_idx) → module.layer_idx (2)",
        ],
        SAME_SHAPE: [
            "grouped_attention: query → key (7)",
            "grouped_attention: key → value (2)",
            "_one_query: key → value",
            "_one_query: key → value (2)",
            "_attend: query → key (3)",
            "_attend: key → value (2)",
            "_attend: query → key (5)",
            "_products: key → value",
            "_products: query → key (2)",
            "_products: value → key",
        ],
        ONE_SEQUENCE: [
            "grouped_attention: 0 → -1",
            "grouped_attention: 0 → -1 (3)",
            "grouped_attention: 0 → -1 (5)",
        ],
        EXACTLY_ONE: [
            "grouped_attention: outputs[0] if len(outputs) == 1 else torch.cat(outputs)"
            " → torch.cat(outputs)",
            "grouped_attention: len(outputs) → outputs",
            "grouped_attention: 1 → 0 (11)",
            "grouped_attention: 0 → -1 (8)",
        ],
        "a mask that leaves everything is the same in any shape that fits": [
            "_one_query: key → query",
        ],
        "folded or not, every query head meets its key head; folding saves copies of the keys": [
            "_one_query: query.reshape(rows, key.shape[1], -1, size) → query",
            "_one_query: key → query (2)",
        ],
        "what is added to every score changes no softmax": [
            "_one_query: torch.zeros(1, 1, 1, key.shape[2], device=query.device)"
            " → torch.ones(1, 1, 1, key.shape[2], device=query.device)",
            "_products: torch.zeros_like(mask, dtype=wide) → torch.ones_like(mask, dtype=wide)",
            "placeholder_mask: torch.ones(…) without dtype=torch.bool",
        ],
        "a CPU's kernels take an added mask in any format, CUDA's in that of the queries": [
            "_attend: never mask is not None and mask.is_floating_point()",
            "_attend: drop mask = mask.to(dtype)",
            "_attend: mask.to(dtype) → mask",
        ],
        TWO_WAYS: [
            "_attend: grouped and (not _takes_grouped_heads(query.device.type, mask))"
            " → not _takes_grouped_heads(query.device.type, mask)",
        ],
        ORDER_OF_A_SET: [
            "_slow_in_reduced: (torch.bfloat16, torch.float16) → (torch.float16, torch.bfloat16)",
            "_check: ('s_aux', 'position_bias', 'cache') → ('position_bias', 's_aux', 'cache')",
            "_check: ('s_aux', 'position_bias', 'cache') → ('s_aux', 'cache', 'position_bias')",
        ],
        CPU: [
            "_slow_in_reduced: reduced and value.device.type == 'cpu' and (value.shape[2] <= 384)"
            " → reduced and value.shape[2] <= 384"
        ],
    },
    "models.joint_adapters": {
        SAME_SHAPE: [
            "_computed: 0 → -1",
            "_Adapted.forward: 0 → 1",
            "_Adapted.forward: 0 → -1",
        ],
        COST: [
            "_groups: SIBLINGS → SIBLINGS * 2",
            "_Adapted.backward: always ctx.needs_input_grad[0]",
        ],
        "spares the import of peft where nothing is adapted": [
            "lora_layer: never not hasattr(module, 'base_layer')",
            "lora_layer: hasattr(module, 'base_layer') → module",
        ],
    },
    "models.kept_prompts": {
        CPU: [
            "states_behind: torch.from_numpy(own).to(device) → torch.from_numpy(own)",
            "states_behind: torch.from_numpy(place).to(device) → torch.from_numpy(place)",
            "states_behind: str(device) → device",
        ],
        NEVER_READ: [
            "states_behind: np.zeros(batch.tokens, dtype=np.int64)"
            " → np.ones(batch.tokens, dtype=np.int64)",
        ],
        COST: [
            "states_behind: backbone(…) without attention_mask=placeholder_mask(device)",
            "states_behind: backbone(…) without use_cache=False",
            "states_behind: False → True",
        ],
        "of one thing the first is the last": [
            "states_behind: 0 → -1",
            "states_behind: 0 → -1 (2)",
        ],
    },
    "models.attention_plan": {
        "a row of its own has a key for every query": ["_two_sided: row.queries → row.keys"],
        "a number of numpy is an integer to whoever reads it here": [
            "own_rows: np.cumsum(lengths).tolist() → np.cumsum(lengths)",
            "_two_sided: int(lengths.max()) → lengths.max()",
        ],
        "all rows of a block have one lead": ["_indices: 0 → -1 (3)", "_indices: 0 → -1 (4)"],
        "the first prompt's first token, computed twice alike": ["_attention_plan: 0 → 1 (2)"],
        "one row alone has no padding to weigh": [
            "_bins: members and padded - useful - area >"
            " max(WASTE_SHARE * (useful + area), WASTE_PAIRS)"
            " → padded - useful - area > max(WASTE_SHARE * (useful + area), WASTE_PAIRS)"
        ],
        SQUARE: [
            "_block: 0 → -1",
            "_block: Block(len(rows), queries, keys, mask=None)"
            " → Block(len(rows), keys, queries, mask=None)",
            "_block: queries → keys",
            "_block: keys → queries",
        ],
    },
    "models.view": {
        "a disabled autocast does not read its format": [
            "autocast: dtype if reduced else None → dtype"
        ],
        "of one thing the first is the last": [
            "View.logps: 0 → -1",
            "View.logps_behind: 0 → -1",
        ],
        COST: [
            "View._layout_of: window is None or self._layout == 'padded' → window is None",
            "View._layout_of: 'padded' → 'padded_'",
        ],
    },
    "rollout.choose": {
        ORDER_OF_A_SET: ["choose: (0.0, 1.0) → (1.0, 0.0)"],
        MATRIX: [
            "choose: -1 → 1",
            "choose: -1 → 1 (2)",
            "_invert: -1 → 1",
            "_invert: -1 → 1 (5)",
            "_invert: -1 → 1 (7)",
            "truncate: -1 → 1",
            "_nucleus_edge: -1 → 1",
            "_nucleus_edge: -1 → 1 (2)",
            "_nucleus_edge: -1 → 1 (3)",
            "_nucleus_edge: -1 → 1 (5)",
        ],
        U_BELOW_ONE: [
            "_first_above: drop target = torch.minimum(target, torch.nextafter(total, -total))",
            "_first_above: torch.minimum(target, torch.nextafter(total, -total)) → target",
            "_first_above: torch.nextafter(total, -total) → total",
            "_first_above: -total → total",
            "_first_above: torch.searchsorted(cdf, target, right=True)"
            ".clamp_(max=cdf.shape[1] - 1) → torch.searchsorted(cdf, target, right=True)",
            "_first_above: cdf.shape[1] - 1 → cdf.shape[1] + 1",
            "_first_above: cdf.shape[1] - 1 → cdf.shape[1]",
            "_first_above: 1 → 0 (3)",
        ],
        "in one look or two, and however many tokens without mass follow, the draw is the same": [
            "_invert: always width <= NARROW",
            "_invert: width <= NARROW → width < NARROW",
            "_invert: NARROW → NARROW * 2",
            "_invert: always width % BLOCK",
            "_invert: width % BLOCK → width * BLOCK",
            "_invert: width % BLOCK → width",
            "_invert: width % BLOCK → BLOCK",
            "_invert: BLOCK → BLOCK * 2",
            "_invert: BLOCK → BLOCK * 2 (2)",
        ],
        "rounding alone leaves less than nothing for a token; float32 is enough for 128": [
            "_invert: (target - (cdf.gather(1, block) - mass.gather(1, block))).clamp_(min=0)"
            " → target - (cdf.gather(1, block) - mass.gather(1, block))",
            "_invert: 0 → -1 (2)",
            "_invert: inner.cumsum(…) without dtype=torch.float64",
        ],
        "an index of one column may be widened before that column or after it": [
            "_invert: 2 → 1",
        ],
        "`topk` takes the last dimension unless told": [
            "truncate: probs.topk(…) without dim=-1",
            "_nucleus_edge: probs.topk(…) without dim=-1",
        ],
        LOOKS_FURTHER: [
            "_nucleus_edge: FIRST_LOOK → FIRST_LOOK * 2",
            "_nucleus_edge: min(look, width) → width",
            "_nucleus_edge: look >= width or bool((mass[:, -1:] >= top_p * total).all())"
            " → look >= width",
            "_nucleus_edge: look >= width → look > width",
            "_nucleus_edge: mass[:, -1:] >= top_p * total → mass[:, -1:] > top_p * total",
            "_nucleus_edge: -1 → 1 (4)",
            "_nucleus_edge: [-1:] → [-1 + 1:]",
            "_nucleus_edge: [-1:] → [-1 - 1:]",
            "_nucleus_edge: [-1:] → [:]",
            "_nucleus_edge: 1 → 2 (5)",
            "_nucleus_edge: 1 → 0 (5)",
            "_nucleus_edge: top_p * total → total",
            "_nucleus_edge: top_p → 1",
            "_nucleus_edge: 4 → 5",
            "_nucleus_edge: 4 → 3",
        ],
        NUMBERS: [
            "_nucleus_edge: bool((mass[:, -1:] >= top_p * total).all())"
            " → (mass[:, -1:] >= top_p * total).all()"
        ],
    },
    "rewards.shaping": {
        "a mask times a number is 0 or the number": [
            "missing_eos: (~finished).to(scores.dtype) → ~finished"
        ],
        NUMBERS: [
            "token_rewards: int(lengths.sum()) → lengths.sum()",
            "token_rewards: int(lengths.min()) → lengths.min()",
        ],
        VECTOR: ["token_rewards: 0 → -1", "token_rewards: 0 → -1 (2)"],
    },
    "stages.arrange": {
        EMPTY_LISTS: ["pair_logps: (better, worse, first) → (worse, better, first)"],
        LIST_INDEX: [
            "pair_logps: torch.tensor(better, dtype=torch.long, device=sums.device) → better",
            "pair_logps: torch.tensor(worse, dtype=torch.long, device=sums.device) → worse",
            "single_logps: torch.tensor(kept, dtype=torch.long, device=sums.device) → kept",
            "group_logps: index_of(kept) → kept",
            "group_logps: index_of(kept) → kept (2)",
        ],
    },
    "stages.reward": {
        EMPTY_LISTS: [
            "group_scores: (better, worse, owner, first) → (worse, better, owner, first)",
            "group_scores: (better, worse, owner, first) → (better, owner, worse, first)",
        ],
    },
    "stages.grpo_work": {
        VECTOR: ["GRPOWork.surrogate: 0 → -1"],
        "whitening takes a constant baseline away again, whatever it is": [
            "GRPOWork.advantages: (flat, _) → (_, flat)",
            "GRPOWork.advantages: torch.zeros_like(rewards) → torch.ones_like(rewards)",
        ],
    },
}
