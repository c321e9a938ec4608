"""`python -m worker.training STAGE --config FILE --out FOLDER`: the recipe of the built-in model, stage by stage.

Stages, in order: vae, latents, transformer, export, evaluate. A training stage that was stopped goes on from its last
checkpoint when it is started again. With several processes: `torchrun --nproc-per-node N -m worker.training STAGE ...`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from worker.evaluation import following
from worker.models.registry import load_model
from worker.training import export, latents, transformer, vae
from worker.training.recipe import Recipe


def main(arguments: list[str] | None = None) -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(prog="python -m worker.training", description=__doc__)
    parser.add_argument("stage", choices=["vae", "latents", "transformer", "export", "evaluate"])
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "cpu.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, logs and results")
    parser.add_argument(
        "--model", type=Path, help="pipeline folder that `export` writes (default: OUT/model)"
    )
    options = parser.parse_args(arguments)
    recipe, out = Recipe.read(options.config), options.out
    device, folder = recipe.device(), options.model or out / "model"
    if recipe.machine.threads:
        torch.set_num_threads(recipe.machine.threads)
    match options.stage:
        case "vae":
            vae.train(recipe.vae, recipe.vae_training, out, device)
        case "latents":
            autoencoder = vae.load(recipe.vae, out / "vae.pt", device)
            latents.make(autoencoder, recipe.latents, out)
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
            result = {
                "autoencoder": vae.quality(folder / "vae", recipe.latents.size, device),
                **following.evaluate(
                    load_model(str(folder), device=device),
                    prompts=options.prompts,
                    long_prompts=options.long_prompts,
                ),
            }
            (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps({k: v for k, v in result["following"].items() if k != "videos"}))


if __name__ == "__main__":
    main()
