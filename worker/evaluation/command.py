"""`longtake evaluate`: an evaluation from its options to its report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from worker.evaluation import cases, study, vbench
from worker.evaluation import report as reports
from worker.models.base import ModelLoadError

Failed = (cases.EvaluationError, ModelLoadError)
"""What a person can put right; their words are one line."""


def report(results: Path, markdown: Path | None = None) -> Path:
    """Writes the report of a JSON, by default beside it, and returns its place."""
    markdown = markdown or results.with_name("report.md")
    reports.write(results, markdown)
    return markdown


def evaluate(
    *,
    model: str,
    config: str,
    output: Path,
    markdown: Path | None = None,
    methods: str | None = None,
    variants: Mapping[str, str] | None = None,
    prompts: Path | None = None,
    budget_minutes: float | None = None,
    processes: int = 1,
    device: str = "cpu",
    suite: tuple[vbench.Suite, str] | None = None,
) -> Path:
    """Makes what is missing of an evaluation in `output`, and its report. Progress goes to standard error.

    `methods` is a comma-separated choice of the plan's, `prompts` a TOML file in place of the held-out prompts.
    """
    plan = study.Plan.read(config)
    if methods:
        plan = plan.only(tuple(name.strip() for name in methods.split(",")))
    study.run(
        plan,
        model=model,
        output=output,
        variants=variants,
        prompts=cases.read(prompts) if prompts else None,
        budget_minutes=budget_minutes,
        processes=processes,
        device=device,
        suite=suite,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return report(output / "results.json", markdown)
