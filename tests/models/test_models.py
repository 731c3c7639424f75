"""Each model against its plain PyTorch twin in float64, and what a module has to be able to do."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.models import (
    CNNLSTM,
    BasicBlock,
    Bottleneck,
    LSTMLanguageModel,
    ResNet,
    reference,
    reference_twin,
    resnet18,
    resnet50,
)
from tests.harness import relative_l2

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def seeded(make, *args, **kwargs) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return make(*args, **kwargs)


def images(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def signal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def tokens(batch: int, steps: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (batch, steps), generator=torch.Generator().manual_seed(3))


def settle(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Statistics of a batch, and damped residual branches: random ones at full strength amplify every rounding."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, BasicBlock | Bottleneck):
            nn.init.constant_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight, 0.15)
    with torch.no_grad():
        model.train()(x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


def first(result):
    return result[0] if isinstance(result, tuple) else result


def small(block=BasicBlock, stem: str = "cifar") -> ResNet:
    """One block a stage: everything that a ResNet has, quickly."""
    return seeded(ResNet, block, (1, 1, 1, 1), 10, stem)


CASES = {
    "resnet18": lambda: (settle(seeded(resnet18), images(4, 96)), images(2, 96)),
    "resnet18-odd": lambda: (settle(seeded(resnet18), images(4, 96)), images(1, 107)[..., :75]),
    "resnet50": lambda: (settle(seeded(resnet50), images(8, 96)), images(1, 96)),
    "cifar": lambda: (settle(small(), images(8, 32)), images(2, 32)),
    "cifar-bottleneck": lambda: (settle(small(Bottleneck), images(8, 32)), images(2, 32)),
    "language-model": lambda: (seeded(LSTMLanguageModel, 300, 24, 40, 2).eval(), tokens(3, 17, 300)),
    "language-model-int32": lambda: (seeded(LSTMLanguageModel, 300, 24, 40, 1).eval(), tokens(1, 5, 300).int()),
    "cnn-lstm": lambda: (seeded(CNNLSTM, 10, 320, 48, 2).eval(), signal(2, 1, 40, 20)),
    "cnn-lstm-odd": lambda: (seeded(CNNLSTM, 10, 320, 48, 2).eval(), signal(3, 1, 43, 23)),
    "cnn-lstm-frames": lambda: (seeded(CNNLSTM, 10, 320, 48, 1, per_frame=True).eval(), signal(2, 1, 41, 22)),
    "cnn-lstm-one-frame": lambda: (seeded(CNNLSTM, 10, 64, 16, 1).eval(), signal(1, 1, 4, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_twin_in_float64(case, dtype):
    model, x = CASES[case]()
    with torch.no_grad():
        expected = first(reference_twin(model).double()(x.double() if x.is_floating_point() else x))
        got = first(model.to(dtype)(x.to(dtype) if x.is_floating_point() else x))
    assert got.shape == expected.shape
    assert got.dtype == dtype
    assert expected.std() > 1e-3  # a dead network would agree with anything
    assert relative_l2(got, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
def test_runs_in_float64_as_the_twin(case):
    model, x = CASES[case]()
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        assert relative_l2(first(model(x)), first(reference_twin(model)(x))) <= 1e-13


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


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
def test_state_dict_goes_both_ways(case):
    model, x = CASES[case]()
    twin = reference_twin(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.01)
    model.load_state_dict(twin.state_dict(), strict=True)
    with torch.no_grad():
        assert relative_l2(first(model(x)), first(twin(x))) <= 1e-5


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
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
        assert relative_l2(model(x), reference_twin(model).double()(x.double())) <= 1e-5
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        model.layer3[0].bn1 = nn.GroupNorm(8, 256)
        model.layer4[0].downsample = nn.Conv2d(256, 512, 1, 2)
        expected = plain(model, x)
        assert relative_l2(model(x), expected) <= 1e-5


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
        assert relative_l2(model(x), expected) <= 1e-5
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
        assert relative_l2(model(x), plain(model, x)) <= 1e-5


def test_symbolic_trace_gives_the_plain_graph():
    model, x = CASES["cifar"]()
    traced = torch.fx.symbolic_trace(model)
    called = [traced.get_submodule(n.target) for n in traced.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(module, nn.Conv2d) for module in called) == 12
    with torch.no_grad():
        assert relative_l2(traced(x), model(x)) <= 1e-5


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
def test_compiles_in_one_graph(case):
    model, x = CASES[case]()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_l2(first(compiled(x)), first(model(x))) <= 1e-5


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
def test_exports(case):
    model, x = CASES[case]()
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
        assert relative_l2(first(exported(x)), first(model(x))) <= 1e-5


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
def test_training_gradients_equal_the_twins(case):
    model, x = CASES[case]()
    model.train()
    twin = reference_twin(model).double()
    first(model(x)).square().mean().backward()
    first(twin(x.double() if x.is_floating_point() else x)).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert relative_l2(p.grad, q.grad) <= 1e-4, name
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert relative_l2(a, b) <= 1e-5, name  # the batch norms saw the same statistics


@pytest.mark.parametrize("case", ["cifar", "language-model", "cnn-lstm"])
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
    with torch.no_grad():  # and what it learnt is what eval mode runs
        assert relative_l2(first(model.eval()(x)), first(reference_twin(model)(x))) <= 1e-5


def test_state_carries_a_sequence_on():
    model, x = CASES["language-model"]()
    with torch.no_grad():
        expected, (h, c) = model(x)
        state = None
        for t in range(x.shape[1]):
            logits, state = model(x[:, t : t + 1], state)
    assert relative_l2(logits, expected) <= 1e-5
    assert relative_l2(state[0], h) <= 1e-5
    assert relative_l2(state[1], c) <= 1e-5


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


class Odd(nn.Module):
    pass


MODEL = LSTMLanguageModel(30, 8, 8, 1)
SIGNALS = CNNLSTM(4, 128, 8, 1)
WRONG = [
    (lambda: resnet18(stem="imgnet"), ValueError, "ResNet: stem: expected one of imagenet, cifar; got 'imgnet'"),
    (lambda: resnet18(0), ValueError, "ResNet: num_classes: expected at least 1; got 0"),
    (lambda: resnet18(10.0), TypeError, "ResNet: num_classes: expected an int; got 10.0"),
    (lambda: pk.models.ResNet(Odd, (1, 1, 1, 1)), TypeError, "ResNet: block: expected BasicBlock or Bottleneck"),
    (lambda: pk.models.ResNet(pk.models.BasicBlock, (1, 1)), ValueError, "ResNet: layers: expected four counts"),
    (
        lambda: resnet18()(torch.zeros(1, 1, 64, 64)),
        ValueError,
        r"ResNet: x: expected \(N, 3, H, W\) for the imagenet stem; got \(1, 1, 64, 64\)",
    ),
    (
        lambda: resnet18(stem="cifar")(torch.zeros(1, 3, 64, 64)),
        ValueError,
        r"ResNet: x: expected \(N, 3, 32, 32\) for the cifar stem; got \(1, 3, 64, 64\)",
    ),
    (lambda: resnet18()(torch.zeros(3, 64, 64)), ValueError, r"got \(3, 64, 64\)"),
    (lambda: LSTMLanguageModel(0, 8, 8, 1), ValueError, "LSTMLanguageModel: vocab_size: expected at least 1; got 0"),
    (lambda: LSTMLanguageModel(30, 8, True, 1), TypeError, "LSTMLanguageModel: hidden_dim: expected an int; got True"),
    (lambda: MODEL(torch.zeros(1, 4)), TypeError, "x: expected a tensor of int64 or int32; got torch.float32"),
    (lambda: MODEL([1, 2]), TypeError, "x: expected a tensor of int64 or int32; got list"),
    (lambda: MODEL(tokens(1, 0, 30)), ValueError, r"x: expected \(B, T\) with at least one step; got \(1, 0\)"),
    (lambda: MODEL(tokens(1, 4, 30)[0]), ValueError, r"x: expected \(B, T\) with at least one step; got \(4,\)"),
    (lambda: MODEL(torch.tensor([[3, 30]])), IndexError, "x: expected token ids from 0 to 29; got ids from 3 to 30"),
    (lambda: MODEL(tokens(2, 4, 30), (torch.zeros(1, 3, 8),) * 2), (ValueError, RuntimeError), "lstm"),
    (lambda: MODEL.generate(torch.zeros(2), 3), TypeError, "prompt: expected a tensor of int64"),
    (lambda: MODEL.generate(tokens(1, 2, 30), -1), ValueError, "generate: max_new_tokens: expected at least 0; got -1"),
    (lambda: MODEL.generate(tokens(1, 2, 30), 1.5), TypeError, "generate: max_new_tokens: expected an int; got 1.5"),
    (
        lambda: MODEL.generate(tokens(1, 2, 30), 1, temperature=-0.5),
        ValueError,
        "generate: temperature: expected at least 0; got -0.5",
    ),
    (lambda: CNNLSTM(4, 100, 8, 1), ValueError, r"CNNLSTM: input_size: expected 64 \* \(F // 4\), a multiple of 64"),
    (lambda: CNNLSTM(4, 128, 0, 1), ValueError, "CNNLSTM: hidden_size: expected at least 1; got 0"),
    (
        lambda: SIGNALS(torch.zeros(1, 1, 8, 12)),
        ValueError,
        r"CNNLSTM: x: .*F from 8 to 11 \(input_size 128.*got \(1, 1, 8, 12\); its frames would have 64 \* 3 values",
    ),
    (lambda: SIGNALS(torch.zeros(1, 1, 3, 8)), ValueError, "CNNLSTM: x: expected .* T at least 4"),
    (lambda: SIGNALS(torch.zeros(1, 8, 8)), ValueError, r"CNNLSTM: x: expected \(B, 1, T, F\)"),
    (lambda: reference_twin(Odd()), TypeError, "reference_twin: model: expected one of ResNet, .* got Odd"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
