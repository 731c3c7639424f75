"""What is measured: each row a subject (a model, a layer, a product) at one size and batch. Data only; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

TABLES = ("models", "networks", "conv", "lstm", "int8")


@dataclass(frozen=True)
class Row:
    """One subject at one size; `subjects.build` turns it into a module and its inputs."""

    name: str
    table: str
    #: Which builder of `subjects.py` makes it, and with what.
    kind: str
    sizes: dict[str, int | str]
    batch: int
    #: Useful work of one call: two per multiply-add, counted on the direct algorithm.
    flops: int
    #: What the contenders look at: "conv" (channels_last makes sense), "bn" (can be folded), "rnn", "gemm" (int8 in,
    #: int32 out), "linear" (a lone layer, to be quantised).
    traits: frozenset[str] = field(default_factory=frozenset)

    @property
    def baseline(self) -> str:
        """The contender that ratios refer to."""
        return "int_mm" if "gemm" in self.traits else "eager"


def _row(name: str, table: str, kind: str, batch: int, macs: int, *traits: str, **sizes: int | str) -> Row:
    """``macs`` multiply-adds in one call."""
    return Row(name, table, kind, sizes, batch, 2 * macs, frozenset(traits))


# Multiply-adds of one image, by torch.utils.flop_counter on the plain models.
_RESNETS: dict[str, tuple[dict[str, int | str], int]] = {
    "resnet18": ({"depth": 18, "stem": "imagenet", "image": 224}, 1_814_073_344),
    "resnet50": ({"depth": 50, "stem": "imagenet", "image": 224}, 4_089_184_256),
    "resnet18c": ({"depth": 18, "stem": "cifar", "image": 32}, 555_422_720),
}


def _models(batch: int) -> Iterator[Row]:
    for name, (sizes, macs) in _RESNETS.items():
        yield _row(f"{name}_b{batch}", "models", "resnet", batch, macs * batch, "conv", "bn", **sizes)
    lm: dict[str, int | str] = {"vocabulary": 10000, "embedding": 256, "hidden": 512, "layers": 2, "tokens": 64}
    macs = 64 * (_lstm_macs(256, 512) + _lstm_macs(512, 512)) + 512 * 10000
    yield _row(f"lstmlm_b{batch}", "models", "lstmlm", batch, macs * batch, "rnn", **lm)
    cl: dict[str, int | str] = {"frames": 200, "features": 80, "hidden": 256, "layers": 2, "classes": 10}
    macs = 200 * 80 * 32 * 9 + 100 * 40 * 64 * 32 * 9
    macs += 50 * 2 * (_lstm_macs(64 * 20, 256) + _lstm_macs(512, 256)) + 512 * 10
    yield _row(f"cnnlstm_b{batch}", "models", "cnnlstm", batch, macs * batch, "conv", "rnn", **cl)


#: The networks of `networks`, with the multiply-adds of one image or sequence.
_NETWORKS = {
    "mobilenet_v2": 300_774_272,
    "mobilenet_v3_large": 215_040_960,
    "efficientnet_lite0": 385_187_552,
    "efficientnet_b0": 385_814_752,
    "mobileone_s0": 1_100_706_304,
    "regnety_008": 797_176_832,
    "resnext50": 4_230_479_872,
    "densenet121": 2_834_161_664,
    "yolov5n": 558_515_200,
    "yolov8n": 4_371_456_000,
    "hrnet": 718_821_376,
    "deeplabv3plus": 3_497_900_032,
    "crnn": 910_526_976,
    "wav2letter": 4_797_758_000,
    "tcn": 205_033_472,
    "wav2vec_features": 2_450_123_776,
    "tacotron_encoder": 550_502_400,
    "unet": 3_017_801_728,
    "dcgan": 104_628_224,
}


def _lstm_macs(inputs: int, hidden: int) -> int:
    """Multiply-adds of one time step of one layer in one direction."""
    return 4 * hidden * (inputs + hidden)


#: ResNet's distinct convolutions: channels in, out, kernel, stride, image side.
_CONVS = (
    (3, 64, 7, 2, 224),
    (64, 64, 3, 1, 56),
    (64, 128, 3, 2, 56),
    (128, 128, 3, 1, 28),
    (128, 256, 3, 2, 28),
    (256, 256, 3, 1, 14),
    (256, 512, 3, 2, 14),
    (512, 512, 3, 1, 7),
    (64, 128, 1, 2, 56),
    (128, 256, 1, 2, 28),
    (256, 512, 1, 2, 14),
    (128, 128, 3, 2, 56),
    (256, 256, 3, 2, 28),
    (512, 512, 3, 2, 14),
    (64, 64, 1, 1, 56),
    (64, 256, 1, 1, 56),
    (256, 64, 1, 1, 56),
    (256, 128, 1, 1, 56),
    (128, 512, 1, 1, 28),
    (256, 512, 1, 2, 56),
    (512, 128, 1, 1, 28),
    (512, 256, 1, 1, 28),
    (256, 1024, 1, 1, 14),
    (512, 1024, 1, 2, 28),
    (1024, 256, 1, 1, 14),
    (1024, 512, 1, 1, 14),
    (512, 2048, 1, 1, 7),
    (1024, 2048, 1, 2, 14),
    (2048, 512, 1, 1, 7),
)


def _conv(batch: int, c: int, k: int, r: int, stride: int, side: int, name: str = "", table: str = "conv") -> Row:
    macs = batch * (-(-side // stride)) ** 2 * k * c * r * r
    name = name or f"conv{c}-{k}_{r}x{r}s{stride}_{side}_b{batch}"
    return _row(name, table, "conv", batch, macs, "conv", "bn", c=c, k=k, r=r, stride=stride, side=side)


def _lstm(kind: str, steps: int, hidden: int, batch: int) -> Row:
    macs = batch * steps * _lstm_macs(hidden, hidden)
    return _row(f"{kind}{hidden}_b{batch}", "lstm", kind, batch, macs, "rnn", hidden=hidden, steps=steps)


#: M, N, K.
_GEMMS = (
    (1, 4096, 4096),
    (16, 4096, 4096),
    (256, 1024, 1024),
    (1024, 1024, 1024),
    (4096, 4096, 1024),
    (128, 3072, 768),
)

#: The smallest row: what the tests run, and a check that the whole path works.
SMOKE = _conv(1, 4, 8, 3, 1, 8, "smoke", "smoke")

ROWS: tuple[Row, ...] = (
    *(row for batch in (1, 16) for row in _models(batch)),
    *(
        _row(f"{name}_b{batch}", "networks", "network", batch, macs * batch, "conv", "bn", structure=name)
        for batch in (1, 16)
        for name, macs in _NETWORKS.items()
    ),
    *(_conv(batch, *sizes) for batch in (1, 16) for sizes in _CONVS),
    *(
        _lstm(kind, t, h, b)
        for kind, t in (("lstm", 100), ("cell", 1))
        for h in (128, 256, 512, 1024)
        for b in (1, 16, 64)
    ),
    *(_row(f"int8_{m}x{n}x{k}", "int8", "gemm", m, m * n * k, "gemm", m=m, n=n, k=k) for m, n, k in _GEMMS),
    *(_row(f"linear_{m}x{n}x{k}", "int8", "linear", m, m * n * k, "linear", m=m, n=n, k=k) for m, n, k in _GEMMS),
    SMOKE,
)


def by_name(name: str) -> Row:
    """The row of that name; `ValueError` where there is none."""
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"row: expected one that `bench peers --list` shows, got {name!r}")


def select(table: str, patterns: list[str]) -> list[Row]:
    """The rows of a table that match any of the shell patterns; all where none is given.

    Raises:
        ValueError: no such table, or a pattern that matches nothing.
    """
    rows = [row for row in ROWS if row.table == table]
    if not rows:
        raise ValueError(f"table: expected one of {', '.join(TABLES)}; got {table!r}")
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise ValueError(f"--rows: expected patterns of rows of {table!r} ({names}); got {pattern!r}")
    return [row for row in rows if not patterns or any(fnmatchcase(row.name, p) for p in patterns)]
