"""Memory by part, against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from capacity_cases import CPU, CUDA, SMALL, full, lora, sampling, update, work

from alignlab.capacity.activations import Arithmetic, freed_bytes, layer_bytes
from alignlab.capacity.device import allocation
from alignlab.capacity.memory import (
    BUCKET,
    CHUNK,
    PARTS,
    Setting,
    micro_tokens,
    peak,
    phases,
    stored,
)


def moment(workload, setting, name, place=CUDA):
    [found] = [m for m in phases(workload, setting, place) if m.phase == name]
    return found


def test_sixteen_bytes_a_trained_weight_and_what_zero_shares_of_them() -> None:
    # 2,000 weights in float32: 8,000 bytes of weights and of gradients, 16,000 of moments. Sharded,
    # a copy of the weights comes to the moments: 24,000 / 4 of the states, 8,000 / 4 of the others.
    table = {0: (8000, 8000, 16000), 1: (8000, 8000, 6000), 2: (8000, 2000, 6000),
             3: (2000, 2000, 6000)}  # fmt: skip
    for zero, expected in table.items():
        # 64 · 4 tokens: two micro-batches of 32 for each of the four processes
        several = work(update=update(tokens=256))
        found = moment(several, Setting(32, processes=4, zero=zero), "accumulate")
        assert (found.weights, found.gradients, found.optimizer) == expected, zero


def test_alone_there_is_nothing_to_share() -> None:
    assert phases(work(), Setting(32, zero=3), CUDA) == phases(work(), Setting(32), CUDA)


def test_offload_moves_states_and_then_weights_to_main_memory() -> None:
    states = moment(work(), Setting(32, 4, 2, "optimizer"), "backward")
    # 24,000 / 4 of states, and the share of the gradients with them: 8,000 / 4
    assert (states.optimizer, states.gradients, states.host) == (0, 0, 8000)
    everything = moment(work(), Setting(32, 4, 3, "all"), "backward")
    assert (everything.weights, everything.host) == (0, 2000 + 6000 + 2000)
    # Only training has an engine that moves them.
    alone = moment(work(update=None), Setting(32, 1, 3, "all"), "load")
    assert (alone.weights, alone.host) == (8000, 8000)
    # On a CPU main memory is the device's.
    here = moment(work(), Setting(32, 4, 2, "optimizer"), "backward", CPU)
    assert (here.optimizer, here.host) == (6000, 0)


def test_a_frozen_base_is_stored_as_products_take_it() -> None:
    # 1,152 of 2,000 weights are matrices: two bytes each under bfloat16, the others four.
    assert stored(full(), half=True) == 1152 * 2 + 848 * 4
    assert stored(full(), half=False) == 8000
    # Adapters of one base: the policy's and the value's are trained, two more are frozen.
    views = work(lora(), trained=2, frozen=2)
    held = moment(views, Setting(32), "forward")
    assert held.weights == 1152 * 2 + 848 * 4 + 4 * 544 * 4
    assert held.optimizer == 2 * 544 * 8
    # Copies: two trained ones in float32, two frozen ones as stored.
    held = moment(work(trained=2, frozen=2), Setting(32), "forward")
    assert held.weights == 2 * 8000 + 2 * (1152 * 2 + 848 * 4)


def test_activations_of_a_block_by_hand() -> None:
    # bfloat16 on CUDA, full: residual and normed, twice, in float32: 4·8·4 = 128; casts for q, k,
    # v, gate and up: 5·8·2 = 80; q, k, v and the output of attention: (16 + 8)·2 = 48, log-sum-exp
    # 2·4; what the output product reads 16; gate, its silu, up, their product 4·16·2 = 128.
    assert layer_bytes(full(), Arithmetic(half=True, cpu=False), 16) == 128 + 80 + 48 + 8 + 16 + 128
    # On CPUs the weights of attention over 16 keys are kept: 2 heads · 16 · (4 + 2).
    found = layer_bytes(full(), Arithmetic(half=True, cpu=True), 16)
    assert found == 128 + 80 + 48 + 192 + 16 + 128
    # Frozen norms keep no normed states; seven adapters of rank 2 keep 7·2·2.
    found = layer_bytes(lora(), Arithmetic(half=True, cpu=False), 16)
    assert found == 64 + 80 + 48 + 8 + 16 + 128 + 28


def test_what_techniques_keep_by_hand() -> None:
    cuda = Arithmetic(half=True, cpu=False)
    # Outputs of the seven linear layers: 8 + 4 + 4 + 8, 16 + 16 + 8 = 64 wide. DoRA keeps W x and
    # B A x of each, two bytes an element, so of three results that LoRA frees one is left.
    assert layer_bytes(lora(kept=2), cuda, 16) == layer_bytes(lora(), cuda, 16) + 2 * 64 * 2
    assert (freed_bytes(lora(), cuda), freed_bytes(lora(freed=1), cuda)) == (3 * 64 * 2, 64 * 2)
    # Before virtual tokens no linear layer has anything to learn, so none keeps what it reads:
    # residual 2·8·4; q, k, v and the output of attention 48 and 8; gate, its silu and up 3·16·2.
    still = lora(rank=0, adapted=0, still=True)
    assert layer_bytes(still, cuda, 16) == 64 + 48 + 8 + 96
    # Dropout before seven adapters: inputs 5·8 + 8 + 16 = 64 wide, masks in bytes on GPUs and
    # float32 on CPUs.
    assert layer_bytes(lora(drops=True), cuda, 16) == layer_bytes(lora(), cuda, 16) + 64
    cpu = Arithmetic(half=True, cpu=True)
    assert layer_bytes(lora(drops=True), cpu, 16) == layer_bytes(lora(), cpu, 16) + 64 * 4
    # A base of four bits: the matrix in use is there in bfloat16, 16 by 8.
    held = moment(work(lora(packed=0.5)), Setting(32), "forward")
    assert held.buffers - moment(work(lora()), Setting(32), "forward").buffers == 16 * 8 * 2
    # Where one block of two is trained, the backward pass ends there: 372 bytes of the block above.
    one = moment(work(lora(reached=1)), Setting(32), "forward").activations
    assert one == 372 * 32 + 2 * 32 * 8 * 4


def test_a_pass_keeps_all_blocks_or_with_checkpointing_one() -> None:
    layer = 408 * 32  # bytes of the block above, 32 tokens
    around = 2 * 32 * 8 * 4  # before and after the last norm
    kept = moment(work(), Setting(32), "forward").activations
    assert kept == 2 * layer + around
    again = moment(work(full(checkpointing=True)), Setting(32), "forward").activations
    assert again == layer + 2 * 32 * 8 * 4 + around


def test_gradients_are_there_before_a_second_micro_batch() -> None:
    # 64 tokens in one micro-batch: gradients come as activations go; in two, they stay.
    assert moment(work(), Setting(64), "forward").gradients == 0
    assert moment(work(), Setting(64), "backward").gradients == 8000
    assert moment(work(), Setting(32), "accumulate").gradients == 8000
    # 40 tokens a micro-batch: a second one of 24
    found = moment(work(), Setting(40), "accumulate")
    assert found.activations == moment(work(), Setting(24), "forward").activations
    # PPO: the policy's are there when the value's forward pass ends.
    both = work(trained=2)
    assert moment(both, Setting(64), "forward").gradients == 8000
    assert moment(both, Setting(32), "accumulate").gradients == 16000


def test_a_group_larger_than_the_budget_stands_alone() -> None:
    assert micro_tokens(Setting(8), 16, 64) == 16
    assert micro_tokens(Setting(32), 16, 64) == 32
    assert micro_tokens(Setting(4096), 16, 64) == 64


def test_logits_are_a_few_chunks_and_nothing_for_a_scalar_head() -> None:
    # 32 tokens, half of them predicted, 100 words: 16·100 floats, three times; the head in bfloat16
    # with one column more, and twice its gradient.
    found = moment(work(), Setting(32), "forward").logits
    assert found == 3 * 16 * 100 * 4 + 100 * 9 * 2 + 2 * 100 * 8 * 4
    assert moment(work(lora()), Setting(32), "forward").logits == 3 * 6400 + 1800
    reward = work(update=update(targets=0.0))
    assert moment(reward, Setting(32), "forward").logits == 0
    wide = full(dimensions=replace(SMALL, vocabulary=CHUNK))
    assert moment(work(wide), Setting(32), "forward").logits >= 3 * CHUNK * 4


def test_the_memory_of_sampling_by_hand() -> None:
    # 4 of 6 rows side by side, 10 + 30 tokens: 64 columns; 4 prompts of 10 in one pass, which takes
    # place beside the whole memory when rows make room. Keys and values: 2·4 · 2 bytes · 2 layers.
    found = moment(work(decode=sampling(), frozen=1), Setting(32), "prefill")
    assert found.cache == (4 * 64 + 40) * 2 * 4 * 2 * 2
    assert found.logits == 4 * 100 * 24 + 100 * 9 * 2
    assert found.activations > 0
    last = moment(work(decode=sampling(), frozen=1), Setting(32), "sample")
    assert (last.cache, last.activations) == (4 * 64 * 2 * 4 * 2 * 2, 0)
    # Two processes share 6 rows: 3 each, which nobody waits behind. A prompt's 10 tokens take 32
    # columns, so the memory is smaller while prompts pass.
    shared = work(decode=sampling())
    first, last = (moment(shared, Setting(32, processes=2), at) for at in ("prefill", "sample"))
    assert first.cache == (3 * 32 + 30) * 2 * 4 * 2 * 2
    assert last.cache == 3 * 64 * 2 * 4 * 2 * 2


def test_weights_in_shares_are_put_together_to_sample_and_block_by_block_to_train() -> None:
    setting = Setting(32, processes=4, zero=3)
    alone = moment(work(decode=sampling(live=True)), Setting(32, processes=4), "sample")
    found = moment(work(decode=sampling(live=True)), setting, "sample")
    assert found.buffers - alone.buffers == 8000 * 3 // 4
    found, alone = (moment(work(), s, "forward") for s in (setting, Setting(32, processes=4)))
    assert found.buffers - alone.buffers == 2 * 800 * 4 + 2 * 2000 * 4  # and two buckets
    assert BUCKET > 2000


def test_a_model_is_whole_in_main_memory_before_its_shares_are_on_devices() -> None:
    whole = 8000 + 1152 * 2 + 848 * 4  # the trained one and a frozen copy
    loading = [moment(work(frozen=1), Setting(32, 4, zero), "load") for zero in range(4)]
    assert [m.weights for m in loading] == [whole, whole, whole, whole // 4]
    assert {(m.optimizer, m.host) for m in loading} == {(0, 8000)}
    # So it is in a stage that trains nothing.
    assert moment(work(update=None), Setting(32, 4, 3), "load").weights == 8000 // 4
    # On CPUs files in half precision are converted, beside what is made of them.
    here = [moment(work(m), Setting(32), "load", CPU).buffers for m in (full(), lora())]
    assert here == [0, 2 * 2000]


def test_parts_add_up_and_slack_is_a_share_of_what_comes_and_goes() -> None:
    place = replace(CUDA, runtime=1000, slack=0.5)
    found = peak(work(), Setting(32), place)
    assert found.total == sum(getattr(found, name) for name in PARTS)
    moving = found.activations + found.logits + found.buffers + found.gradients
    assert found.overhead == moving // 2
    assert found.runtime == 1000
    assert found == max(phases(work(), Setting(32), place), key=lambda m: m.total)


def test_what_the_allocator_of_a_cpu_keeps() -> None:
    place = replace(CPU, runtime=1000, slack=0.5, training=300, holes=0.5)
    # Chunks of logits are handed back at once, and a file that is mapped is nothing of the heap.
    found = moment(work(), Setting(32), "forward", place)
    assert found.overhead == (found.activations + found.buffers + found.gradients) // 2
    assert found.runtime == 1000 + 300
    loading = moment(work(lora()), Setting(32), "load", place)
    assert (loading.overhead, loading.runtime) == (0, 1000)
    assert loading.buffers > 0
    # Adapters free three results of every width: 8 + 4 + 4 + 8 + 16 + 16 + 8 = 64 floats a token,
    # in two blocks, or with checkpointing in one at a time.
    for changed, blocks in (({}, 2), ({"checkpointing": True}, 1)):
        found = moment(work(lora(**changed)), Setting(32), "forward", place)
        freed = 3 * 64 * 4 * 32 * blocks
        assert found.overhead == freed // 2 + (found.activations + found.gradients) // 2
    # Adapters on two of seven matrices free as much less; where all is trained nothing is.
    arithmetic = Arithmetic(half=False, cpu=True)
    assert freed_bytes(lora(adapted=2), arithmetic) == pytest.approx(3 * 64 * 4 * 2 / 7)
    assert freed_bytes(full(), arithmetic) == 0.0


@pytest.mark.parametrize(
    ("dtype", "cpu", "half"),
    [("float32", False, False), ("bfloat16", True, True), ("auto", False, True)],
)
def test_the_number_format_follows_the_configuration(dtype: str, cpu: bool, half: bool) -> None:
    assert allocation(cpu, dtype).half is half
