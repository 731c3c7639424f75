"""Networks of timm and torchvision, and the structures of `bench peers networks`: eager against `pk.optimize`.

    python bench/zoo.py                          # half an hour on one slow core; JSON to bench/results
    python bench/zoo.py --only 'tv:*,*mobile*' --out /tmp/zoo.json --steps /tmp/zoo-steps

For each network: one image, the answer against float64, CPU time of one thread (the least of some calls, the contenders
in turn) and what was left to torch, with why. Weights are as initialised, batch norm's statistics as after training.
Prefixes: `tv:` torchvision's, `pk:` ours, none for timm's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pykernels as pk
from pykernels import _native
from pykernels._measure import Call, interleaved, relative_l2
from pykernels.cli.bench.machine import cpu_name

RESULTS = Path(__file__).parent / "results"
#: The largest relative error against float64, unless eager's own is more than half of it.
TOLERANCE = 1e-5
#: Below this ratio a network's steps are timed, if they are asked for.
LITTLE = 1.15

TIMM = """
mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100 mobilenetv4_conv_small mobilenet_edgetpu_v2_xs mnasnet_100
efficientnet_b0 efficientnet_lite0 tf_efficientnetv2_b0 tf_efficientnet_b0 fbnetc_100 fbnetv3_b hardcorenas_a
spnasnet_100 mixnet_s tinynet_a lcnet_100 ghostnet_100 ghostnetv2_100 mobileone_s0 repvgg_a0 repghostnet_100 fastvit_t8
repvit_m0_9 edgenext_xx_small mobilevit_xxs mobilevitv2_050 efficientformer_l1 efficientvit_b0 efficientvit_m0
starnet_s1 semnasnet_100 rexnet_100
resnet18 resnet26d resnet50 resnext50_32x4d seresnet50 skresnet18 ecaresnet50t resnest14d res2net50_26w_4s
gernet_s resnetv2_50 nf_resnet26 dm_nfnet_f0 regnetx_004 regnety_004 regnety_008 regnetz_b16 wide_resnet50_2
convnext_atto convnextv2_atto convnext_tiny vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224
pit_ti_224 levit_128s cait_xxs24_224 xcit_nano_12_p16_224 poolformer_s12 pvt_v2_b0 coat_lite_tiny crossvit_tiny_240
maxvit_pico_rw_256 coatnet_pico_rw_224 beit_base_patch16_224 eva02_tiny_patch14_224 hiera_tiny_224 tiny_vit_5m_224
mixer_s16_224 resmlp_12_224 gmlp_s16_224 convmixer_768_32 inception_next_atto focalnet_tiny_srf nest_tiny_jx
hrnet_w18_small densenet121 dpn68 dla34 selecsls42b vovnet39a ese_vovnet19b_dw hardcorenas_f
vgg11_bn inception_v3 inception_v4 xception41 legacy_xception cspresnet50 cspdarknet53 darknet53 bat_resnext26ts
visformer_tiny mambaout_femto caformer_s18 botnet26t_256 halonet26t lambda_resnet26t volo_d1_224 twins_pcpvt_small
tresnet_m resnetaa50 hgnetv2_b0 hgnet_tiny vitamin_small_224 test_convnext
"""
TORCHVISION = """
alexnet vgg11 squeezenet1_0 squeezenet1_1 shufflenet_v2_x0_5 shufflenet_v2_x1_0 googlenet inception_v3 mnasnet1_0
mobilenet_v2 mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_v2_s regnet_y_400mf regnet_x_800mf
resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 convnext_tiny vit_b_32 swin_t swin_v2_t maxvit_t
segmentation.lraspp_mobilenet_v3_large segmentation.deeplabv3_mobilenet_v3_large segmentation.deeplabv3_resnet50
segmentation.fcn_resnet50 detection.ssdlite320_mobilenet_v3_large.backbone
detection.fasterrcnn_mobilenet_v3_large_fpn.backbone detection.fasterrcnn_resnet50_fpn.backbone
detection.retinanet_resnet50_fpn.backbone detection.ssd300_vgg16.backbone
"""
#: Images of torchvision's networks that are not of 224.
SIZES = {"segmentation.*": 256, "detection.*": 320, "inception_v3": 299}


def _declare_missing_operators() -> Any:
    """Declares the operators of torchvision's C++ part for which its Python part has fakes: wheels for another build of
    torch lack them. What is declared lasts as long as the result.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def networks(patterns: list[str]) -> Iterator[tuple[str, Callable[[], tuple[nn.Module, Tensor]]]]:
    """The names that match, and what makes each network with its image."""
    for prefix, package, names, make in (
        ("", "timm", TIMM.split(), _of_timm),
        ("tv:", "torchvision", TORCHVISION.split(), _of_torchvision),
        ("pk:", "pykernels.cli.bench.peers.networks", None, _of_ours),
    ):
        try:
            module = importlib.import_module(package)
        except ImportError as missing:
            print(f"no networks of {package}: {missing}")
            continue
        for name in module.NETWORKS if names is None else names:
            if any(fnmatchcase(prefix + name, p) for p in patterns):
                yield prefix + name, lambda make=make, module=module, name=name: make(module, name)


def _of_timm(timm: Any, name: str) -> tuple[nn.Module, Tensor]:
    model = timm.create_model(name, pretrained=False)
    return model, torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])


def _of_torchvision(torchvision: Any, name: str) -> tuple[nn.Module, Tensor]:
    where = torchvision.models
    *folders, name_ = name.removesuffix(".backbone").split(".")
    for folder in folders:
        where = getattr(where, folder)
    options: dict[str, Any] = {"weights_backbone": None} if folders else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    model = getattr(where, name_)(weights=None, **options)
    if name.endswith(".backbone"):
        model = model.backbone
    size = next((s for pattern, s in SIZES.items() if fnmatchcase(name, pattern)), 224)
    return model, torch.randn(1, 3, size, size)


def _of_ours(module: Any, name: str) -> tuple[nn.Module, Tensor]:
    return module.build(name)


def worn_in(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norm as after training: folding a fresh one would prove nothing.

    Nor would an answer that is zero because a layer starts with zeros.
    """
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(0.0, 0.02)
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
                m.running_mean.normal_(0.0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
                if m.weight is not None:
                    m.weight.uniform_(0.8, 1.2)
                    m.bias.normal_(0.0, 0.1)
    return model.eval().requires_grad_(False)


def tensors(value: Any) -> list[Tensor]:
    """Those in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [t for part in parts for t in tensors(part)]


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The worst of the outputs'."""
    return max(relative_l2(g, e) for g, e in zip(got, expected, strict=True))


def measured(make: Callable[[], tuple[nn.Module, Tensor]], seconds: float, steps: bool) -> dict[str, Any]:
    """One network's row. What raises is a result too."""
    torch.manual_seed(0)
    model, x = make()
    worn_in(model)
    with torch.inference_mode():
        row, eager, ours = timed(model, x, seconds, steps)
        expected = tensors(model.double()(x.double()))
    row |= {"error": error(ours, expected), "eager_error": error(eager, expected)}
    row["status"] = "ok" if row["error"] <= max(TOLERANCE, 2 * row["eager_error"]) else "wrong"
    return row


def timed(
    model: nn.Module, x: Tensor, seconds: float, steps: bool
) -> tuple[dict[str, Any], list[Tensor], list[Tensor]]:
    """The times and what was left, and both answers. Steps are timed where little is won."""
    eager = tensors(model(x))
    fast = pk.optimize(model)
    fast(x)
    ours = [t.clone() for t in tensors(fast(x))]
    cpu = interleaved([lambda: model(x), lambda: fast(x)], seconds, least=3, most=40, clock=_cpu_seconds)
    least = [min(times) for times in cpu]
    row: dict[str, Any] = {"eager_ms": 1e3 * least[0], "ours_ms": 1e3 * least[1], "ratio": least[0] / least[1]}
    report = fast.report(time=steps and row["ratio"] < LITTLE)
    row |= {"steps": len(report.counted()), "torch_steps": report.torch_steps}
    row["left"] = [{"what": what, "why": why, "count": n} for (what, why), n in _left(report).items()]
    return row | {"report": str(report)}, eager, ours


def _left(report: Any) -> Counter[tuple[str, str]]:
    return Counter((left.what, left.why) for left in report.left)


def _cpu_seconds(call: Call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measures, prints and writes; a file is there after each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="shell patterns of names, by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="for the timing of one network")
    parser.add_argument("--steps", type=Path, help="a folder for each network's steps by time")
    parser.add_argument("--out", type=Path, help="the JSON file; bench/results/zoo-<isa>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nms = _declare_missing_operators()
    if options.steps is not None:
        options.steps.mkdir(parents=True, exist_ok=True)
    out = options.out or RESULTS / f"zoo-{_native.introspect().active_isa()}.json"
    rows: list[dict[str, Any]] = []
    for name, make in networks(options.only.split(",")):
        try:
            row = measured(make, options.seconds, options.steps is not None)
        except Exception as problem:
            row = {"status": "raised", "reason": f"{type(problem).__name__}: {str(problem)[:300]}"}
        report = row.pop("report", "")
        rows.append({"name": name, **row})
        text = "{eager_ms:8.1f} {ours_ms:8.1f} {ratio:6.2f} {error:8.1e}" if "ratio" in row else "{reason}"
        print(f"{name:48s} {row['status']:7s} " + text.format(**row), flush=True)
        if options.steps is not None:
            (options.steps / f"{name.replace(':', '-')}.txt").write_text(f"{json.dumps(rows[-1])}\n\n{report}\n")
        write(rows, out)
    del nms


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """A row a line, for whoever compares two of the files."""
    machine = {"cpu": cpu_name(), "isa": _native.introspect().active_isa(), "threads": 1}
    head = json.dumps({"schema": 1, "machine": machine | {"torch": torch.__version__}})[:-1]
    lines = ",\n".join(json.dumps(row) for row in rows)
    out.write_text(f'{head}, "results": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
