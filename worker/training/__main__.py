"""`python -m worker.training STAGE --config FILE --out FOLDER`: the recipe of the built-in model, stage by stage.

Stages, in order: vae, latents, transformer, decoder (if wanted), export, evaluate. A training stage that was stopped
goes on from its last checkpoint when it is started again. Where there are no checkpoints any more, `import` makes them
from a pipeline folder that `export` wrote: its weights, without the state of the optimizers. With several processes:
`torchrun --nproc-per-node N -m worker.training STAGE ...`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from worker.models.base import ModelLoadError
from worker.training import export, latents, scenes, transformer, vae
from worker.training.recipe import Recipe
from worker.training.run import ConfigError

STAGES = ("vae", "latents", "transformer", "decoder", "export", "evaluate")


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage. Ends the process with code 2 and one line where the configuration or an input does not fit."""
    parser = argparse.ArgumentParser(prog="python -m worker.training", description=__doc__)
    parser.add_argument("stage", choices=["import", *STAGES])
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "cpu.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, logs and results")
    parser.add_argument(
        "--model",
        type=Path,
        help="pipeline folder that `export` writes and `import` reads (default: OUT/model)",
    )
    parser.add_argument(
        "--plan", default="card", help="of `evaluate`, as `longtake evaluate --config` takes it"
    )
    options = parser.parse_args(arguments)
    try:
        if options.out.exists() and not options.out.is_dir():
            raise ConfigError(f"--out: {options.out} is no folder")
        _run(options)
    except (ConfigError, ModelLoadError, FileNotFoundError) as error:
        message = str(error)
        if isinstance(error, FileNotFoundError):
            message = f"there is no {error.filename or error}; were the stages before this one run with the same --out?"
        print(f"longtake training: {message}", file=sys.stderr)
        sys.exit(2)


def _run(options: argparse.Namespace) -> None:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    recipe, out = Recipe.read(options.config), options.out
    device, folder = recipe.device(), options.model or out / "model"
    if recipe.machine.threads:
        torch.set_num_threads(recipe.machine.threads)
    if options.stage in ("import", "evaluate") and not folder.is_dir():
        raise ConfigError(f"--model: there is no folder {folder}")
    match options.stage:
        case "import":
            export.read(recipe.vae, recipe.text, recipe.transformer, folder=folder, checkpoints=out)
        case "vae":
            vae.train(recipe.vae, recipe.vae_training, out, device)
        case "decoder":
            vae.train(recipe.vae, recipe.vae_training, out, device, decoder_only=True)
        case "latents":
            autoencoder = vae.load(recipe.vae, out / "vae.pt", device)
            latents.make(autoencoder, recipe.latents, out, transformer.statistics(out / "transformer.pt"))
        case "transformer":
            transformer.train(
                recipe.transformer,
                recipe.text,
                recipe.windows,
                recipe.transformer_training,
                out=out,
                device=device,
            )
        case "export":
            export.write(
                recipe.vae,
                recipe.text,
                recipe.transformer,
                recipe.windows,
                size=recipe.latents.size,
                config=recipe.export,
                checkpoints=out,
                folder=folder,
            )
        case "evaluate":
            from worker.evaluation import cases, study  # ask for more than training does

            try:
                plan = study.Plan.read(options.plan)
                autoencoder = vae.quality(
                    folder, recipe.latents.size, device, scenes.WORLDS[recipe.text.world]
                )
                out.mkdir(parents=True, exist_ok=True)
                (out / "autoencoder.json").write_text(json.dumps(autoencoder, indent=1) + "\n")
                print(json.dumps(autoencoder), flush=True)
                study.run(plan, model=str(folder), output=out / "evaluation", device=str(device))
            except cases.EvaluationError as error:
                raise ConfigError(str(error)) from error


if __name__ == "__main__":
    main()
