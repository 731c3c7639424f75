"""The commands and their options. What they do is in `pykernels.cli`, and is imported when one runs."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from pykernels_cli import version
from pykernels_cli._options import check_writable, cpus, one_thread_count, positive_int, positive_seconds, refusals

#: Click's, whether Typer brings a Click of its own or not.
UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """A group that says what is wrong in one line, and shows its help where no command is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """No arguments are ``--help``."""
        return super().parse_args(ctx, args or ["--help"])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Click's, with our words for a command that there is not."""
        if self.get_command(ctx, args[0]) is None:
            ctx.fail(f"command: expected one of {', '.join(self.list_commands(ctx))}; got {args[0]!r}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Runs a command and exits."""
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra)
        except UsageError as wrong:
            print(refusal(wrong, extra.get("args") or ()), file=sys.stderr)
            sys.exit(2)
        except typer.Abort:
            sys.exit(130)
        sys.exit(code)


class Command(TyperCommand):
    """A command that refuses an option given twice, of which Click would take the last one and say nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Click's, after a look for options that are given twice."""
        if not ctx.resilient_parsing:
            order: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
            for param in order:
                times = order.count(param)
                if times > 1 and param.opts[0].startswith("-") and not param.multiple:
                    raise typer.BadParameter(f"expected once, got {times} times", ctx=ctx, param=param)
        return super().parse_args(ctx, args)


def refusal(wrong: Any, arguments: Sequence[str]) -> str:
    """The line for a wrong argument: ``pykernels check: --op: expected ..., got ...``."""
    words = itertools.takewhile(lambda argument: not argument.startswith("-"), arguments)
    command = " ".join(["pykernels", *words]) if wrong.ctx is None else wrong.ctx.command_path
    message = str(wrong.message).rstrip(".")
    param, option = getattr(wrong, "param", None), getattr(wrong, "option_name", None)
    if param is not None:
        message = f"{param.opts[0] if param.opts[0].startswith('-') else param.name}: {message}"
    elif hasattr(wrong, "possibilities"):
        known = [name for p in wrong.ctx.command.get_params(wrong.ctx) for name in p.opts if name.startswith("-")]
        message = f"{option}: expected one of {', '.join(known)}; got no option of these"
    elif option is not None:
        value = "no value, got one" if "not take" in message else "a value, got none"
        message = f"{option}: expected {value}"
    elif (extra := re.search(r"unexpected extra argument.* \((.*)\)", message)) is not None:
        message = f"expected no more arguments, got {extra[1]!r}"
    return f"{command}: {message}"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"pykernels {version()}")
        raise typer.Exit()


app = typer.Typer(name="pykernels", cls=Commands, add_completion=False, pretty_exceptions_enable=False)
bench = typer.Typer(name="bench", cls=Commands)
app.add_typer(bench)


@app.callback()
def _pykernels(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Fused kernels for PyTorch: show what is built, check that it is right, measure how fast it is."""


@app.command("info", cls=Command)
def _info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show what is built, what runs here, and why something does not; exit code 1 where something needs repair."""
    from pykernels.cli.info import run

    raise typer.Exit(run(as_json))


@app.command("check", cls=Command)
def _check(
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be repeated.")] = None,
    backend: Annotated[str | None, typer.Option(help="Only this backend: cpu, cuda, triton or reference.")] = None,
    isa: Annotated[
        str | None, typer.Option(help="Only this instruction set of the CPU kernels, for example avx2.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Only this dtype, for example bfloat16.")] = None,
) -> None:
    """Check every op on every backend and instruction set against float64; exit code 1 on a failure."""
    from pykernels.cli.check import run

    with refusals():
        raise typer.Exit(run(op or [], backend, isa, dtype))


@app.command("demo", cls=Command)
def _demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer runs: rougher times, the same checks.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("build/demo"),
    threads: Annotated[
        str | None, typer.Option(help="How many threads to use; torch's own number if left out.")
    ] = None,
) -> None:
    """Check, time and draw four models on real input: PyTorch against pykernels in float32 and bfloat16."""
    with refusals():
        count = None if threads is None else one_thread_count(threads)
        check_writable("--out", out / "demo.png")
    from pykernels.cli.demo import run

    raise typer.Exit(run(quick, out, count))


@app.command("tune", cls=Command)
def _tune(
    op: Annotated[str | None, typer.Option(help="Only this op; every op that can be tuned if left out.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="A shape for --op, such as m,n,k; may be repeated. The bench samples' shapes if left out."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="The dtype for ops that compute in floating point.")] = "float16",
    out: Annotated[
        Path | None, typer.Option(help="The file for the table; the one that PYKERNELS_TUNED names if left out.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(parser=positive_int, metavar="COUNT", help="Timed calls of each candidate.")
    ] = 20,
) -> None:
    """Time the tiles of the Triton kernels on this GPU and write the best into a table; exit code 2 without a GPU."""
    from pykernels.cli.tune import run

    with refusals():
        raise typer.Exit(run(op, shape or [], dtype, out, repeats))


@bench.callback()
def _bench() -> None:
    """Measure speed, memory and start-up against PyTorch and other engines; every answer is checked first."""


Rounds = Annotated[
    int,
    typer.Option(
        "--repeats",
        parser=positive_int,
        metavar="COUNT",
        help="Processes to run for each contender; the median counts.",
    ),
]
Seconds = Annotated[
    float, typer.Option(parser=positive_seconds, metavar="SECONDS", help="How long to time each row in each process.")
]
Threads = Annotated[str, typer.Option(help="One or more thread counts, separated by commas.")]
OneThreadCount = Annotated[str, typer.Option("--threads", help="How many threads to use.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")]
ONE_AND_TWO = "1,2" if cpus() > 1 else "1"
Models = Annotated[str, typer.Option("--rows", help="Only models that match, for example 'resnet*_b1'.")]


@bench.command("peers", cls=Command)
def _peers(
    table: Annotated[
        str, typer.Argument(help="Which rows to measure: models, networks, conv, lstm or int8.")
    ] = "models",
    rows: Annotated[str, typer.Option(help="Only rows that match, for example 'resnet*_b1,lstmlm_b1'.")] = "",
    contenders: Annotated[
        str, typer.Option(help="Only these contenders, for example 'ours,ort'; the baseline always runs.")
    ] = "",
    threads: Threads = ONE_AND_TWO,
    repeats: Rounds = 3,
    seconds: Seconds = 1.0,
    json: Json = None,
    listing: Annotated[bool, typer.Option("--list", help="Show rows and contenders, and measure nothing.")] = False,
) -> None:
    """Compare pykernels with PyTorch's own ways and with other engines, each alone in its own process."""
    from pykernels.cli.bench.commands import peers

    peers(table, rows, contenders, threads, repeats, seconds, json, listing)


@bench.command("memory", cls=Command)
def _memory(rows: Models = "*_b1", threads: OneThreadCount = "1", repeats: Rounds = 3, json: Json = None) -> None:
    """Compare the peak memory of each optimised model with eager's plus the packed weights."""
    from pykernels.cli.bench.commands import memory

    memory(rows, threads, repeats, json)


@bench.command("startup", cls=Command)
def _startup(rows: Models = "*_b1", repeats: Rounds = 3) -> None:
    """Measure how long `import pykernels`, pk.optimize and the first call take."""
    from pykernels.cli.bench.commands import startup

    startup(rows, repeats)


@bench.command("ops", cls=Command)
def _ops(
    op: Annotated[str | None, typer.Argument(help="Only this op; every op if left out.")] = None,
    threads: Threads = "1",
    seconds: Seconds = 0.3,
    json: Json = None,
) -> None:
    """Time every op against eager PyTorch in this process, and compare it with what the machine can do."""
    from pykernels.cli.bench.commands import ops

    ops(op, threads, seconds, json)
