"""``python -m pykernels info | check | bench | demo | tune``; the package itself imports neither Typer nor Rich."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pykernels.cli._console import check_writable, refusals

app = typer.Typer(
    name="pykernels",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fused kernels for PyTorch: what is built, is it right, how fast is it.",
)


@app.command("info")
def _info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """What is built, what runs here, and why something does not; exit code 1 where something has to be mended."""
    from pykernels.cli.info import run

    raise typer.Exit(run(as_json))


@app.command("check")
def _check(
    op: Annotated[str | None, typer.Option(help="Only this op.")] = None,
    backend: Annotated[str | None, typer.Option(help="Only this backend: cpu, cuda, triton or reference.")] = None,
    isa: Annotated[str | None, typer.Option(help="Only this instruction set of the CPU kernels.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Only this dtype, for example bfloat16.")] = None,
) -> None:
    """Every op on every backend and instruction set against the float64 reference; exit code 1 on a failure."""
    from pykernels.cli.check import run

    with refusals():
        raise typer.Exit(run(op, backend, isa, dtype))


@app.command(
    "bench",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def _bench(context: typer.Context) -> None:
    """Speed against PyTorch and the peers; see `bench --help`."""
    # A command that hands its arguments on: mounting the sub-application would import it for every other command.
    from pykernels.cli.bench.commands import app as benches

    benches(args=context.args, prog_name="pykernels bench")


@app.command("demo")
def _demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer runs: rougher times, the same checks.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the picture.", file_okay=False)] = Path("build/demo"),
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch's pool; as many as torch takes.")] = None,
) -> None:
    """The main job: four models on real input, plain PyTorch against ours in float32 and bfloat16."""
    from pykernels.cli.demo import run

    with refusals():
        check_writable("--out", out / "demo.png")
    raise typer.Exit(run(quick, out, threads))


@app.command("tune")
def _tune(
    op: Annotated[str | None, typer.Option(help="Only this op; all that can be tuned if left out.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="A shape of --op, as m,n,k; may be repeated. Else the bench samples'.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of ops in floating point.")] = "float16",
    out: Annotated[
        Path | None, typer.Option(help="The table; what PYKERNELS_TUNED names if left out.", dir_okay=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each candidate.")] = 20,
) -> None:
    """Times the tiles of Triton kernels on this GPU, and writes the best into a table; exit code 2 without a GPU."""
    from pykernels.cli.tune import run

    with refusals():
        raise typer.Exit(run(op, shape or [], dtype, out, repeats))


def main() -> None:
    """The entry point of ``pykernels`` and ``python -m pykernels``."""
    app(prog_name="pykernels")
