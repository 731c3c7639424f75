"""What the models refuse, and with which words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pykernels as pk
from pykernels.models import CNNLSTM, LSTMLanguageModel, reference_twin, resnet18
from tests.models.cases import tokens


class Odd(nn.Module):
    pass


MODEL = LSTMLanguageModel(30, 8, 8, 1)
SIGNALS = CNNLSTM(4, 128, 8, 1)
WRONG = [
    (lambda: resnet18(stem="imgnet"), ValueError, "ResNet: stem: expected one of imagenet, cifar; got 'imgnet'"),
    (lambda: resnet18(0), ValueError, "ResNet: num_classes: expected an int >= 1, got 0"),
    (lambda: resnet18(10.0), TypeError, "ResNet: num_classes: expected an int, got float"),
    (lambda: pk.models.ResNet(Odd, (1, 1, 1, 1)), TypeError, "ResNet: block: expected BasicBlock or Bottleneck"),
    (lambda: pk.models.ResNet(pk.models.BasicBlock, (1, 1)), ValueError, "ResNet: layers: expected four counts"),
    (
        lambda: resnet18()(torch.zeros(1, 1, 64, 64)),
        ValueError,
        r"ResNet: x: expected \(N, 3, H, W\) for the imagenet stem, got \(1, 1, 64, 64\)",
    ),
    (
        lambda: resnet18(stem="cifar")(torch.zeros(1, 3, 64, 64)),
        ValueError,
        r"ResNet: x: expected \(N, 3, 32, 32\) for the cifar stem, got \(1, 3, 64, 64\)",
    ),
    (lambda: resnet18()(torch.zeros(3, 64, 64)), ValueError, r"got \(3, 64, 64\)"),
    (lambda: LSTMLanguageModel(0, 8, 8, 1), ValueError, "LSTMLanguageModel: vocab_size: expected an int >= 1, got 0"),
    (lambda: LSTMLanguageModel(30, 8, True, 1), TypeError, "LSTMLanguageModel: hidden_dim: expected an int, got bool"),
    (lambda: MODEL(torch.zeros(1, 4)), TypeError, "x: expected a tensor of int64 or int32, got torch.float32"),
    (lambda: MODEL([1, 2]), TypeError, "x: expected a tensor of int64 or int32, got list"),
    (lambda: MODEL(tokens(1, 0, 30)), ValueError, r"x: expected \(B, T\) with at least one step, got \(1, 0\)"),
    (lambda: MODEL(tokens(1, 4, 30)[0]), ValueError, r"x: expected \(B, T\) with at least one step, got \(4,\)"),
    (lambda: MODEL(torch.tensor([[3, 30]])), IndexError, "x: expected token ids from 0 to 29, got ids from 3 to 30"),
    (lambda: MODEL(tokens(2, 4, 30), (torch.zeros(1, 3, 8),) * 2), (ValueError, RuntimeError), "lstm"),
    (lambda: MODEL.generate(torch.zeros(2), 3), TypeError, "prompt: expected a tensor of int64"),
    (
        lambda: MODEL.generate(tokens(1, 2, 30), -1),
        ValueError,
        "generate: max_new_tokens: expected an int >= 0, got -1",
    ),
    (lambda: MODEL.generate(tokens(1, 2, 30), 1.5), TypeError, "generate: max_new_tokens: expected an int, got float"),
    (
        lambda: MODEL.generate(tokens(1, 2, 30), 1, temperature=-0.5),
        ValueError,
        "generate: temperature: expected a number >= 0, got -0.5",
    ),
    (lambda: CNNLSTM(4, 100, 8, 1), ValueError, r"CNNLSTM: input_size: expected 64 \* \(F // 4\), a multiple of 64"),
    (lambda: CNNLSTM(4, 128, 0, 1), ValueError, "CNNLSTM: hidden_size: expected an int >= 1, got 0"),
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
