"""`longtake evaluate`: measures a model and its samplers."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from app.cli.grammar import CommandError, Commands, count, model_flag, model_name, seconds
from app.supervisor import BAD_USAGE


def add(commands: Commands) -> None:
    """Adds the command to the grammar."""
    evaluate = commands.add(
        "evaluate",
        _evaluate,
        "measure a model and its samplers",
        "\nMakes videos by the sampler and by what it is compared with, measures them, and writes\n"
        "results.json, plots and report.md. What was made is not made again: an evaluation that\n"
        "was interrupted goes on. `evaluate report results.json` writes the report alone.",
        "longtake evaluate --config hour --output runs/evaluation --processes 2",
    )
    evaluate.add_argument("report", nargs="?", choices=["report"], help="write the report of a JSON again")
    evaluate.add_argument("json", nargs="?", type=Path, metavar="JSON", help="what it is written from")
    model_flag(evaluate)
    evaluate.add_argument(
        "--config",
        default="hour",
        metavar="NAME",
        help="plan: hour, study, card, plain, quick, smoke, or a TOML file (default hour)",
    )
    evaluate.add_argument(
        "--output",
        type=Path,
        default=Path("runs/evaluation"),
        metavar="DIR",
        help="folder of results (default runs/evaluation)",
    )
    evaluate.add_argument("--markdown", type=Path, metavar="FILE", help="report (default: beside the JSON)")
    evaluate.add_argument("--methods", metavar="A,B", help="only these methods of the plan")
    evaluate.add_argument(
        "--variant",
        action="append",
        type=_variant,
        default=[],
        metavar="METHOD=FOLDER",
        help="weights trained for a method; may be repeated",
    )
    evaluate.add_argument(
        "--prompts", type=Path, metavar="FILE", help="TOML file of [[prompts]]: text, class"
    )
    evaluate.add_argument(
        "--budget-minutes", type=seconds, metavar="N", help="begin no video after this time; continue later"
    )
    evaluate.add_argument("--processes", type=count, default=1, metavar="N", help="videos made at once")
    evaluate.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    suites = evaluate.add_mutually_exclusive_group()
    for suite in ("vbench", "vbench-long"):
        suites.add_argument(
            f"--{suite}", metavar="PYTHON", help=f"also run {suite}, which this Python has installed"
        )


def _variant(text: str) -> tuple[str, str]:
    method, equals, folder = text.partition("=")
    if not (method and equals and Path(folder).is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is not METHOD=FOLDER with a folder that exists")
    return method, str(Path(folder).resolve())


def _evaluate(options: argparse.Namespace) -> int:
    if options.report and options.json is None:
        raise CommandError("evaluate report: which JSON?", BAD_USAGE)
    try:
        module: Any = importlib.import_module("worker.evaluation.command")
    except ImportError as error:
        raise CommandError(
            f"an evaluation needs `pip install '.[worker,evaluation]'` in a checkout ({error})", BAD_USAGE
        ) from error
    try:
        if options.report:
            written = module.report(options.json, options.markdown)
        else:
            suites = (("vbench", options.vbench), ("vbench-long", options.vbench_long))
            written = module.evaluate(
                model=model_name(options.model) or "builtin",
                config=options.config,
                output=options.output,
                markdown=options.markdown,
                methods=options.methods,
                variants=dict(options.variant),
                prompts=options.prompts,
                budget_minutes=options.budget_minutes,
                processes=options.processes,
                device=options.device,
                suite=next((suite for suite in suites if suite[1]), None),
            )
    except module.Failed as error:
        raise CommandError(str(error)) from error
    print(written)
    return 0
