"""At ZeRO 3 no backward pass holds on to a weight that was given back."""

from __future__ import annotations

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from alignlab.models.sharding import Container


def passed(shared: bool) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.UntypedStorage]:
    """Pass two rows through a layer, then give its weight back, as an engine does."""
    torch.manual_seed(0)
    layer, rows = nn.Linear(3, 4), torch.randn(2, 3, requires_grad=True)
    if shared:
        layer.weight.ds_id = 0  # type: ignore[assignment]  (which marks a share)
    out = Container({"layer": layer}, gathers=shared)(lambda: [layer(rows)])[0]
    return layer, rows, out, layer.weight.untyped_storage()


def test_gradients_are_those_of_the_weight_that_comes_back() -> None:
    layer, rows, out, _ = passed(shared=False)
    out.square().sum().backward()
    expected = [rows.grad, layer.weight.grad]
    layer, rows, out, _ = passed(shared=True)
    whole = layer.weight.detach().clone()
    layer.weight.data = torch.empty(0)  # given back after the forward pass …
    layer.weight.data = whole  # … and gathered for the backward pass
    out.square().sum().backward()
    for found, wanted in zip([rows.grad, layer.weight.grad], expected, strict=True):
        assert found is not None
        assert wanted is not None
        assert torch.equal(found, wanted)


def test_what_is_gathered_is_free_after_the_forward_pass() -> None:
    """Without care a layer saves its weight transposed, a view of all of it."""
    free = []
    for shared in (False, True):
        layer, _, out, storage = passed(shared)
        gathered = StorageWeakRef(storage)
        del storage
        layer.weight.data = torch.empty(0)
        free.append(gathered.expired())
        assert out.requires_grad
    assert free == [False, True]
