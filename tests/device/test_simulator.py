"""The simulated GPU itself: what CUDA refuses it refuses, what CUDA waits for it counts."""

from __future__ import annotations

import copy
import io
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from . import simcuda

D = "cuda"
TWO = "Expected all tensors to be on the same device"


@pytest.fixture
def x():
    return torch.arange(12.0).reshape(4, 3).to(D)


@pytest.fixture
def y():
    return torch.arange(12.0).reshape(4, 3)


FACTORIES = {
    "zeros": lambda x, y: torch.zeros(2, device=D),
    "ones": lambda x, y: torch.ones(2, device="cuda:0"),
    "tensor": lambda x, y: torch.tensor([1, 2], device=D),
    "arange": lambda x, y: torch.arange(3, device=D),
    "eye": lambda x, y: torch.eye(2, device=D),
    "full": lambda x, y: torch.full((2,), 1.0, device=D),
    "randperm": lambda x, y: torch.randperm(4, device=D),
    "like": lambda x, y: torch.zeros_like(x),
    "like to": lambda x, y: torch.zeros_like(y, device=D),
    "new": lambda x, y: x.new_zeros(2),
    "empty": lambda x, y: torch.empty(0, device=D),
    "as_tensor": lambda x, y: torch.as_tensor([1.0], device=D),
    "rand": lambda x, y: torch.rand(2, device=x.device),
    "to another": lambda x, y: y.to(x),
    "cuda()": lambda x, y: y.cuda(),
    "scalar": lambda x, y: torch.scalar_tensor(2.0, device=D),
    "double": lambda x, y: x.double(),
    "CPU scalar": lambda x, y: x + y.sum(),
    "where": lambda x, y: torch.where(x > 0, x, float("-inf")),
    "CPU index": lambda x, y: x[torch.tensor([0, 1])],
    "CPU mask": lambda x, y: x[torch.tensor([True, False, True, False])],
    "gradient": lambda x, y: _gradient_across_devices(),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_made_there_is_there(name, x, y):
    made = FACTORIES[name](x, y)
    assert made.is_cuda
    assert made.device == torch.device("cuda", 0)


def _gradient_across_devices():
    w = torch.ones(2, requires_grad=True)
    moved = w.to(D)
    (moved * torch.tensor([2.0, 3.0], device=D)).sum().backward()
    assert w.grad.tolist() == [2, 3]
    assert not w.grad.is_cuda
    return moved


def test_a_move_is_a_copy_or_nothing(x, y):
    assert all(moved is x for moved in (x.to(D), x.to(x.device), x.cuda(), x.to(x), x.to("cuda:0")))
    assert x.to(D, copy=True) is not x
    here = (x.cpu(), x.to("cpu"), x.to(y), torch.zeros_like(x, device="cpu"))
    assert not any(t.is_cuda for t in here)
    assert torch.equal(torch.empty(4, 3).copy_(x), y)
    assert torch.equal(torch.empty(4, 3, device=D).copy_(y).cpu(), y)


def _put_cpu_values(x, y):
    x[torch.tensor([1, 2], device=D)] = torch.ones(2, 3)


def _write_what_is_saved(x, y):
    v = torch.ones(3, device=D, requires_grad=True)
    w = v.exp()
    w.add_(1)
    w.sum().backward()


REFUSED = {
    "another GPU": (lambda x, y: torch.zeros(2, device="cuda:1"), "invalid device ordinal"),
    "add": (lambda x, y: x + y, TWO),
    "add_": (lambda x, y: y.add_(x), TWO),
    "add_ scalar": (lambda x, y: y.add_(x.sum()), TWO),
    "scalar of the GPU": (lambda x, y: y + x.sum(), TWO),
    "cat": (lambda x, y: torch.cat([x, y]), TWO),
    "stack": (lambda x, y: torch.stack([x.sum(), y.sum()]), TWO),
    "mm": (lambda x, y: x @ y.T, TWO),
    "linear": (lambda x, y: F.linear(x, y), TWO),
    "where": (lambda x, y: torch.where(y > 0, x, x), TWO),
    "gather": (lambda x, y: x.gather(0, torch.zeros(1, 3, dtype=torch.long)), TWO),
    "index_add_": (lambda x, y: x.index_add_(0, torch.tensor([0]), torch.ones(1, 3)), TWO),
    "index_select": (lambda x, y: x.index_select(0, torch.tensor([0])), TWO),
    "cross entropy": (lambda x, y: F.cross_entropy(x, torch.tensor([0, 1, 2, 0])), TWO),
    "embedding": (lambda x, y: F.embedding(torch.tensor([0]), x), TWO),
    "masked_fill": (lambda x, y: x.masked_fill(y > 0, 0.0), TWO),
    "attention": (lambda x, y: F.scaled_dot_product_attention(x[None], x[None], y[None]), TWO),
    "layer norm": (lambda x, y: F.layer_norm(x, (3,), torch.ones(3)), TWO),
    "equal": (lambda x, y: torch.equal(x, y), ""),
    "GPU index": (lambda x, y: y[torch.tensor([0], device=D)], "indices should be either on cpu"),
    "GPU mask": (lambda x, y: y[x[:, 0] > 0], "indices should be either on cpu"),
    "CPU values": (_put_cpu_values, TWO),
    "numpy": (lambda x, y: x.numpy(), "can't convert cuda:0"),
    "asarray": (lambda x, y: np.asarray(x), "can't convert cuda:0"),
    "whole mm": (lambda x, y: x.long() @ x.long().T, "not implemented"),
    "what is saved": (_write_what_is_saved, "modified by an inplace operation"),
    "CPU generator": (
        lambda x, y: torch.randn(3, device=D, generator=torch.Generator()),
        "Expected a 'cuda' device type for generator but found 'cpu'",
    ),
    "GPU generator": (
        lambda x, y: torch.randn(3, generator=torch.Generator(device=D)), "Expected a 'cpu' device"
    ),
    "attention's types": (
        lambda x, y: F.scaled_dot_product_attention(x[None], x[None], x[None].bfloat16()),
        "same dtype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name, x, y):
    call, text = REFUSED[name]
    with pytest.raises((RuntimeError, TypeError), match=text):
        call(x, y)


WAITS = {
    "sum().item()": (lambda z, w: z.sum().item(), 1),
    "bool": (lambda z, w: bool(z.any()), 1),
    "float": (lambda z, w: float(z[0]), 1),
    "int": (lambda z, w: int(z[0]), 1),
    "format": (lambda z, w: f"{z[0]:.1f}", 1),
    "tolist": (lambda z, w: z.tolist(), 1),
    "cpu": (lambda z, w: z.cpu(), 1),
    "to": (lambda z, w: torch.ones(2).to(D), 1),
    "tensor": (lambda z, w: torch.tensor([1.0, 2.0], device=D), 1),
    "nonzero": (lambda z, w: z.nonzero(), 1),
    "mask": (lambda z, w: z[z > 0], 1),
    "unique": (lambda z, w: torch.unique(z), 1),
    "equal": (lambda z, w: torch.equal(z, z), 1),
    "eigh": (lambda z, w: torch.linalg.eigh(z[:, None] * z), 1),
    "cholesky": (lambda z, w: torch.linalg.cholesky(torch.eye(3, device=D)), 1),
    "bincount": (lambda z, w: w.bincount(minlength=5), 1),
    "CPU index": (lambda z, w: z[torch.tensor([0])], 1),
    "GPU index": (lambda z, w: z[w], 0),
    "iteration": (lambda z, w: list(z), 0),
    "len": (lambda z, w: len(z), 0),
    "where": (lambda z, w: torch.where(z > 0, z, 0.0), 0),
    "masked_fill": (lambda z, w: z.masked_fill(z > 0, 1.0), 0),
    "fill by mask": (lambda z, w: z.__setitem__(z > 5, 1.0), 0),
    "isin": (lambda z, w: torch.isin(w, w), 0),
    "one_hot": (lambda z, w: F.one_hot(w, 4), 0),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted(name):
    z, w = torch.tensor([1.0, 0.0, 2.0], device=D), torch.arange(3, device=D)
    with simcuda.counting() as found:
        WAITS[name][0](z, w)
    assert simcuda.waits(found) == WAITS[name][1], found


def test_a_copy_to_the_host_is_there_after_a_wait_and_not_before(x, y):
    copy = x.to("cpu", non_blocking=True)
    assert not torch.equal(copy, y)
    x.sum().item()
    assert torch.equal(copy, y)


def test_a_pinned_copy_that_need_not_wait_is_told_apart():
    with simcuda.counting() as found:
        torch.ones(3).pin_memory().to(D, non_blocking=True)
    assert found
    assert not simcuda.waits(found)


def test_values_can_be_put_in_place(y):
    z = torch.zeros(4, device=D)
    z[torch.tensor([1])] = 2.0
    z[torch.tensor([2], device=D)] = torch.tensor(3.0)
    z[0] = torch.tensor(5.0)
    z[z > 4] = 7.0
    z[3:] = y[0, 2:]
    assert z.tolist() == [7, 2, 3, 2]
    view = torch.zeros(4, device=D, requires_grad=True)
    v = view * 1
    v[1:3].mul_(2)
    v[0] = 5
    v.sum().backward()
    assert view.grad.tolist() == [0, 2, 2, 1]


def test_training_equals_the_cpu(y):
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2))
    b = copy.deepcopy(a)
    before = [id(p) for p in b.parameters()]
    b.to(D)
    assert [id(p) for p in b.parameters()] == before
    assert all(type(p) is not nn.Parameter or p.is_cuda for p in b.parameters())
    targets = torch.tensor([0, 1, 1, 0])
    for model, where in ((a, "cpu"), (b, D)):
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(y.to(where)), targets.to(where)).backward()
            nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
            optimizer.step()
    assert all(torch.equal(p, q.cpu()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_attention_equals_the_cpu():
    inputs = [torch.randn(2, 2, 5, 8) for _ in range(3)]
    a = [t.clone().requires_grad_() for t in inputs]
    b = [t.to(D).requires_grad_() for t in inputs]
    bias = torch.randn(5, 5)
    for mask, there in ((None, None), (bias, bias.to(D))):
        u = F.scaled_dot_product_attention(*a, attn_mask=mask)
        v = F.scaled_dot_product_attention(*b, attn_mask=there)
        assert torch.equal(u, v.cpu())
        u.square().sum().backward()
        v.square().sum().backward()
    assert all(torch.equal(s.grad, t.grad.cpu()) for s, t in zip(a, b, strict=True))


def test_files_say_where_tensors_were(x, y):
    model = nn.Linear(3, 2).to(D)
    file = io.BytesIO()
    torch.save({"m": model.state_dict(), "x": x[1:], "e": x[:0]}, file)
    assert b"cuda:0" in file.getvalue()
    file.seek(0)
    there = torch.load(file, weights_only=True)
    file.seek(0)
    here = torch.load(file, map_location="cpu", weights_only=True)
    assert there["m"]["weight"].is_cuda
    assert there["x"].is_cuda
    assert not here["m"]["weight"].is_cuda
    assert torch.equal(here["x"], y[1:])
    assert pickle.loads(pickle.dumps(model)).weight.is_cuda
    assert copy.deepcopy(model).weight.requires_grad


def test_a_module_keeps_its_parameters_in_every_move():
    model, other = nn.Linear(3, 2).to(D), nn.Linear(3, 2)
    weight = model.weight
    model.load_state_dict(other.state_dict())
    assert model.weight is weight
    assert torch.equal(weight.cpu(), other.weight)
    model.to("cpu")
    assert model.weight is weight
    assert type(weight) is nn.Parameter
    assert model.to(D).double().weight.dtype == torch.float64


def test_the_device_draws_from_its_own_generator(monkeypatch):
    monkeypatch.setattr(simcuda.state, "rng", "own")
    torch.manual_seed(3)
    a, state, host = torch.randn(3, device=D), torch.cuda.get_rng_state(), torch.get_rng_state()
    b = torch.randn(3, device=D)
    assert torch.equal(host, torch.get_rng_state())
    torch.cuda.set_rng_state(state)
    assert torch.equal(b, torch.randn(3, device=D))
    torch.manual_seed(3)
    assert torch.equal(a, torch.randn(3, device=D))
    one, two = (torch.Generator(device=D).manual_seed(1) for _ in range(2))
    assert isinstance(one, torch.Generator)
    assert torch.equal(
        torch.rand(2, device=D, generator=one), torch.rand(2, device=D, generator=two)
    )


def test_autocast_has_cudas_lists(x, y):
    model = nn.Linear(3, 3).to(D)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert not torch.is_autocast_enabled("cpu")
        z = model(x)
        assert z.dtype == torch.bfloat16
        for out in (F.layer_norm(z, (3,)), z.sum(), z.softmax(-1), y @ y.T):
            assert out.dtype == torch.float32
        assert (x.double() @ x.double().T).dtype == torch.float64
        with torch.autocast("cuda", enabled=False):
            assert (x @ x.T).dtype == torch.float32
    z.float().sum().backward()
    assert model.weight.grad.dtype == torch.float32


def test_memory_can_run_out(monkeypatch):
    monkeypatch.setattr(simcuda.state, "oom_above", 100)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="out of memory"):
        torch.zeros(1000, device=D)
    assert torch.cuda.max_memory_allocated("cuda:0") > 0
    assert torch.cuda.get_device_name() == "Simulated"


def test_an_index_out_of_range_ends_the_use_of_the_device():
    for _ in range(2):
        with pytest.raises(torch.AcceleratorError, match="device-side assert"):
            torch.zeros(3, device=D)[torch.tensor([5], device=D)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_cannot_use_it():
    torch.zeros(2, device=D)
    pid = os.fork()
    if pid == 0:
        try:
            torch.zeros(2, device=D)
        except RuntimeError as error:
            os._exit(7 if "Cannot re-initialize CUDA" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_loaders_work_with_processes_and_pinned_memory(y):
    loaders = [DataLoader(TensorDataset(y), 2, num_workers=w, pin_memory=True) for w in (0, 2)]
    assert len([batch[0].to(D).sum() for loader in loaders for batch in loader]) == 4
