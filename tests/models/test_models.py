"""Each model against its plain PyTorch twin in float64, and what a module has to be able to do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.models import LSTMLanguageModel, reference, reference_twin, resnet18, resnet50
from tests.harness import relative_l2, to_double
from tests.models.bounds import model_bound
from tests.models.cases import CASES, agree, each_kind, first, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_twin_in_float64(case, dtype):
    model, x = CASES[case]()
    twin = reference_twin(model)
    expected = agree(model.to(dtype), twin, x, dtype)
    assert expected.std() > 1e-3  # a dead network would agree with anything


@each_kind
def test_runs_in_float64_as_the_twin(case):
    model, x = CASES[case]()
    agree(model.double(), reference_twin(model), x, torch.float64)


def torchvision_keys(block: str, layers: tuple[int, ...]) -> list[str]:
    """The names in torchvision's state_dicts, in their order."""
    convs = {"basic": 2, "bottleneck": 3}[block]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = ["conv1.weight", *(f"bn1.{n}" for n in norm)]
    for stage, depth in enumerate(layers, 1):
        for i in range(depth):
            at = f"layer{stage}.{i}"
            for c in range(1, convs + 1):
                keys += [f"{at}.conv{c}.weight", *(f"{at}.bn{c}.{n}" for n in norm)]
            if i == 0 and (stage > 1 or block == "bottleneck"):
                keys += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{n}" for n in norm)]
    return [*keys, "fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "block", "layers", "parameters", "entries"),
    [
        ("resnet18", "basic", (2, 2, 2, 2), 11_689_512, 122),
        ("resnet34", "basic", (3, 4, 6, 3), 21_797_672, 218),
        ("resnet50", "bottleneck", (3, 4, 6, 3), 25_557_032, 320),
        ("resnet101", "bottleneck", (3, 4, 23, 3), 44_549_160, 626),
        ("resnet152", "bottleneck", (3, 8, 36, 3), 60_192_808, 932),
    ],
)
def test_parameters_are_torchvisions(name, block, layers, parameters, entries):
    with torch.device("meta"):
        model = getattr(pk.models, name)()
        twin = reference.ResNet(**model.config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert list(model.state_dict()) == torchvision_keys(block, layers)
    assert len(model.state_dict()) == entries
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in twin.state_dict().items()}


def test_strides_are_torchvisions():
    model = resnet50()
    assert model.layer2[0].conv1.stride == (1, 1)
    assert model.layer2[0].conv2.stride == (2, 2)
    assert model.layer2[0].downsample[0].stride == (2, 2)
    assert model.layer1[0].downsample[0].stride == (1, 1)


def test_class_counts():
    assert resnet18().fc.out_features == 1000
    assert resnet18(stem="cifar").fc.out_features == 10
    assert resnet18(7, "cifar").fc.out_features == 7


@each_kind
def test_state_dict_goes_both_ways(case):
    model, x = CASES[case]()
    twin = reference_twin(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.01)
    model.load_state_dict(twin.state_dict(), strict=True)
    agree(model, twin, x)


@each_kind
def test_copies_and_pickles_are_whole_and_independent(case):
    model, x = CASES[case]()
    with torch.no_grad():
        expected = first(model(x))
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(first(clone(x)), expected)
            for parameter in clone.parameters():
                parameter.zero_()
            assert not torch.equal(first(clone(x)), expected)
            assert torch.equal(first(model(x)), expected)


@pytest.mark.parametrize("case", ["cifar", "cnn-lstm"])
def test_nothing_is_registered_twice(case):
    model, _ = CASES[case]()
    twin = reference_twin(model)
    names = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert names == {name for name, module in twin.named_modules() if list(module.parameters(recurse=False))}


def test_in_place_changes_and_replaced_members_are_seen():
    model, x = CASES["cifar"]()
    with torch.no_grad():
        model(x)
        model.layer1[0].conv1.weight.mul_(0.5)
        model.layer2[0].downsample[1].running_mean.add_(0.1)
        agree(model, reference_twin(model), x)
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        model.layer3[0].bn1 = nn.GroupNorm(8, 256)
        model.layer4[0].downsample = nn.Conv2d(256, 512, 1, 2)
        assert relative_l2(model(x), plain(model, x)) <= 2 * model_bound(model)  # both in float32


def plain(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The members one after the other, as torchvision's forward would run them (cifar stem, basic blocks)."""
    x = torch.relu(model.bn1(model.conv1(x)))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            shortcut = x if block.downsample is None else block.downsample(x)
            y = torch.relu(block.bn1(block.conv1(x)))
            x = torch.relu(block.bn2(block.conv2(y)) + shortcut)
    return model.fc(torch.flatten(nn.functional.avg_pool2d(x, 4), 1))


def test_hooks_run():
    model, x = CASES["cifar"]()
    seen = []
    with torch.no_grad():
        expected = model(x)
        handle = model.layer3[0].conv2.register_forward_hook(lambda _m, _i, y: seen.append(y.shape))
        assert relative_l2(model(x), expected) <= 2 * model_bound(model)
        assert seen == [(2, 256, 8, 8)]
        handle.remove()
        assert torch.equal(model(x), expected)


def test_backward_hooks_run():
    model, x = CASES["cifar"]()
    seen = []
    model.layer3[0].bn2.register_full_backward_hook(lambda _m, _i, grads: seen.append(grads[0].shape))
    model(x).sum().backward()
    assert seen == [(2, 256, 8, 8)]


class DoublingConv(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_member_with_a_forward_of_its_own_runs_as_it_is():
    model, x = CASES["cifar"]()
    doubling = DoublingConv(256, 256, 3, padding=1, bias=False)
    doubling.weight = model.layer3[0].conv2.weight
    model.layer3[0].conv2 = doubling
    with torch.no_grad():
        assert relative_l2(model(x), plain(model, x)) <= 2 * model_bound(model)


def test_symbolic_trace_gives_the_plain_graph():
    model, x = CASES["cifar"]()
    traced = torch.fx.symbolic_trace(model)
    called = [traced.get_submodule(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(module, nn.Conv2d) for module in called) == 12
    with torch.no_grad():
        assert relative_l2(traced(x), model(x)) <= 2 * model_bound(model)


@each_kind
def test_compiles_in_one_graph(case):
    model, x = CASES[case]()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_l2(first(compiled(x)), first(model(x))) <= 2 * model_bound(model)


@each_kind
def test_exports(case):
    model, x = CASES[case]()
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
        assert relative_l2(first(exported(x)), first(model(x))) <= 2 * model_bound(model)


@each_kind
def test_training_gradients_equal_the_twins(case):
    model, x = CASES[case]()
    model.train()
    twin = reference_twin(model).double()
    first(model(x)).square().mean().backward()
    first(twin(to_double(x))).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert relative_l2(p.grad, q.grad) <= 8 * model_bound(model), name
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert relative_l2(a, b) <= model_bound(model), name  # the batch norms saw the same statistics


@each_kind
def test_training_lowers_the_loss(case):
    model, x = CASES[case]()
    model.train()
    labels = torch.arange(x.shape[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(first(model(x)), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
    agree(model.eval(), reference_twin(model), x)  # what it learnt is what eval mode runs


def test_state_carries_a_sequence_on():
    model, x = CASES["language-model"]()
    with torch.no_grad():
        expected, (h, c) = model(x)
        state = None
        for t in range(x.shape[1]):
            logits, state = model(x[:, t : t + 1], state)
    for got, want in zip((logits, *state), (expected, h, c), strict=True):
        assert relative_l2(got, want) <= 2 * model_bound(model)


def greedy(model: nn.Module, x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Without carried state: the whole sequence again for each token."""
    made = []
    for _ in range(count):
        made.append(model(x)[0].argmax(-1))
        x = torch.cat([x, made[-1][:, None]], 1)
    return made


def test_generate_streams_the_likeliest_tokens():
    model, x = CASES["language-model"]()
    with torch.no_grad():
        expected = greedy(reference_twin(model).double(), x, 6)
    stream = model.generate(x, 6, temperature=0)
    assert torch.equal(next(stream), expected[0])  # one at a time
    assert torch.equal(torch.stack([expected[0], *stream]), torch.stack(expected))
    assert [t.shape for t in model.generate(x[0], 2)] == [(), ()]
    assert torch.equal(torch.stack([*model.generate(x[0], 6, temperature=0)]), torch.stack(expected)[:, 0])
    assert list(model.generate(x, 0)) == []


def test_generate_repeats_itself_with_a_seed():
    model, x = CASES["language-model"]()
    runs = [
        torch.stack([*model.generate(x, 8, temperature=0.9, generator=torch.Generator().manual_seed(seed))])
        for seed in (5, 5, 6)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.is_grad_enabled()
    assert not runs[0].requires_grad


def test_twin_keeps_dtype_mode_and_frozen_weights():
    model = seeded(LSTMLanguageModel, 30, 8, 8, 1).to(torch.bfloat16).eval()
    model.embedding.weight.requires_grad_(False)
    twin = reference_twin(model)
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert not twin.training
    assert not twin.embedding.weight.requires_grad
    assert twin.fc.weight.requires_grad
    assert twin.fc.weight.data_ptr() != model.fc.weight.data_ptr()


def test_reference_module_is_plain_torch():
    source = Path(reference.__file__).read_text()
    assert [line for line in source.splitlines() if line.startswith(("import", "from")) and "pykernels" in line] == []
