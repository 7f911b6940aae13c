"""The command line: ``fastgru info | inspect | convert | run | bench``.

Exit codes: 0 done, 1 the work failed (memory, disk, a device), 2 wrong usage or input, 130
interrupted, 143 terminated. An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastgru.cli.terminal import Parser, say
from fastgru.problem import BackendError
from fastgru.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process, ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    # SystemExit, like KeyboardInterrupt, unwinds the stack, so that unfinished output is removed.
    before = signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        with warnings.catch_warnings():
            # What a reader has to say about a model is a line for people, without a place in code.
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: _warn(options, message)
            options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _report(options, "interrupted", 130)
    except BrokenPipeError:  # the reader has closed stdout, and the flush at exit would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError) as error:
        return _report(options, error, 2)
    except (OSError, MemoryError, ImportError, BackendError) as error:
        return _report(options, str(error) or type(error).__name__, 1)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _report(options: argparse.Namespace, error: object, code: int) -> int:
    say([f"fastgru {options.name_of_command}: {' '.join(str(error).split())}"], sys.stderr)
    return code


def _warn(options: argparse.Namespace, message: object) -> None:
    text = f"fastgru {options.name_of_command}: warning: {' '.join(str(message).split())}"
    say([text], sys.stderr)


def _exit_on_sigterm(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fastgru",
        description="Keras' GRU on NumPy arrays. MODEL is a .keras, .h5, .pt, .pth, .onnx, "
        ".safetensors, .npz or .npy file, a SavedModel folder, a checkpoint's .index, or the .json "
        "of TensorFlow.js or of a model in several files.",
    )
    parser.add_argument("--version", action="version", version=f"fastgru {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name_of_command")

    def command(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        made.set_defaults(command=function)
        return made

    command("info", _info, "print versions, CPU features, BLAS, threads and GPU")

    one = command("inspect", _inspect, "list the GRU layers of a model, and how they were read")
    one.add_argument("model", type=Path, metavar="MODEL")
    _add_follow_links(one)

    one = command("convert", _convert, "write a GRU layer of a model to fastgru's own file")
    one.add_argument("model", type=Path, metavar="MODEL")
    one.add_argument("output", type=Path, metavar="OUT.safetensors")
    _add_choice(one)

    one = command("run", _run, "run sequences (B, T, I) from a .npy file through a GRU layer")
    one.add_argument("model", type=Path, metavar="MODEL")
    one.add_argument("input", type=Path, metavar="IN.npy")
    one.add_argument("-o", "--output", type=Path, metavar="OUT.npy", required=True)
    one.add_argument("--lengths", type=Path, metavar="LEN.npy", help="(B,) integers, valid steps")
    one.add_argument("--batch-size", type=_positive, metavar="N", help="rows at a time")
    one.add_argument("--threads", type=_positive, metavar="N", help="at most so many")
    _add_choice(one)

    one = command("bench", _bench, "measure this machine")
    one.add_argument("--threads", type=_positive, metavar="N", help="at most so many")
    one.add_argument("--seconds", type=float, default=0.2, help="for each measurement")
    one.add_argument(
        "--plot",
        default="fastgru-bench.png",
        metavar="FILE",
        help="written where matplotlib is installed; '' for none (default: %(default)s)",
    )
    return parser


def _add_follow_links(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="read an ONNX model's files of weights also where links lead out of its folder",
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    _add_follow_links(parser)
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument("--quiet", action="store_true", help="do not say what was written")
    # One option with three names: Keras has layer names, PyTorch prefixes, ONNX nodes.
    parser.add_argument(
        "--name",
        "--prefix",
        "--node",
        dest="layer",
        help="which layer, as `fastgru inspect` names it, where the model has several",
    )


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected an integer from 1 on, got {text!r}")
    return int(text)


# ---- the commands --------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> None:
    from fastgru.config import show_config

    show_config()


def _inspect(options: argparse.Namespace) -> None:
    from fastgru.cli.models import describe, find

    say(describe(find(options.model, follow_links=options.follow_links)))


def _convert(options: argparse.Namespace) -> None:
    import fastgru

    _expect_suffix(options.output, ".safetensors")
    found = _chosen(options)
    fastgru.save(found.layer, options.output)
    count = found.layer.count_params()
    _tell(options, f"wrote {options.output}: {found.layer!r}, {count:,} parameters")


def _run(options: argparse.Namespace) -> None:
    from fastgru.cli.run import run_file
    from fastgru.io.replacing import expect_other_file

    inputs = [path for path in (options.input, options.lengths) if path is not None]
    expect_other_file(options.output, inputs)
    layer = _chosen(options).layer
    _expect_suffix(options.output, ".npy")
    said = run_file(
        layer,
        options.input,
        options.output,
        lengths=options.lengths,
        batch_size=options.batch_size,
        num_threads=options.threads,
    )
    _tell(options, said)


def _expect_suffix(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise ValueError(f"{path}: expected a name that ends in {suffix}")


def _chosen(options: argparse.Namespace) -> Any:
    from fastgru.cli.models import choose

    return choose(
        options.model,
        options.layer,
        options.output,
        follow_links=options.follow_links,
        force=options.force,
    )


def _tell(options: argparse.Namespace, line: str) -> None:
    if not options.quiet:
        say([line])


def _bench(options: argparse.Namespace) -> None:
    from fastgru.cli.bench import measure, plot, table
    from fastgru.io.replacing import expect_replaceable

    if options.plot:
        expect_replaceable(options.plot)
    results = measure(options.seconds, options.threads)
    say(table(results))
    if options.plot and plot(results, options.plot):
        say([f"plot: {options.plot}"])
