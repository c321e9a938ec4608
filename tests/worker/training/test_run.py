"""What every training run shares, with more than one process where it takes several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from worker.training import run

CONFIG = Path(run.__file__).parent / "configs" / "tiny.toml"
ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")

PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

from worker.training import run, vae
from worker.training.recipe import Recipe

recipe, device = Recipe.read(Path(sys.argv[1])), torch.device("cpu")
torch.set_num_threads(1)
ranks = run.Ranks(device)
out = Path(sys.argv[2], str(ranks.rank))
used, idle = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
used.grad = torch.tensor([1.0, ranks.rank])
if ranks.first:
    idle.grad = torch.tensor([2.0, 4.0])
ranks.average_gradients([used, idle])
agreed = ranks.agree(ranks.rank + 0.25)
run.save_checkpoint(out / "ranks.pt", {"used": used.grad, "idle": idle.grad, "agreed": agreed})

run.Ranks.first = True  # every process writes what it has come to
settings = replace(recipe.vae_training, steps=3, checkpoint_steps=1)
vae.train(recipe.vae, settings, out, device)
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder of results of each of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "process.py").write_text(PROCESS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen([*torchrun, folder / "process.py", CONFIG, folder], cwd=ROOT) as started:
        try:
            assert started.wait(timeout=200) == 0
        finally:
            started.terminate()  # and it its processes
    return [folder / "0", folder / "1"]


def test_gradients_are_averaged_over_processes_also_where_one_has_none(processes: list[Path]) -> None:
    for folder in processes:
        saved = run.load_checkpoint(folder / "ranks.pt")
        assert saved is not None
        assert saved["used"].tolist() == [1.0, 0.5]
        assert saved["idle"].tolist() == [1.0, 2.0]
        assert saved["agreed"] == 0.25


def test_processes_that_train_on_videos_of_their_own_have_the_same_weights(processes: list[Path]) -> None:
    one, other = (run.load_checkpoint(folder / "vae.pt") for folder in processes)
    assert one is not None
    assert other is not None
    for part in ("model", "average"):
        assert all(torch.equal(weight, other[part][name]) for name, weight in one[part].items())
    rows = [[json.loads(line) for line in (f / "vae.jsonl").read_text().splitlines()] for f in processes]
    assert [len(each) for each in rows] == [3, 3]
    assert all(a["loss"] != b["loss"] for a, b in zip(*rows, strict=True))


def test_each_of_several_processes_gets_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that are not there are made up."""
    monkeypatch.setattr(run, "device_of", torch.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert run.pick_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert run.pick_device("auto") == run.pick_device("cuda") == torch.device("cuda:1")
    assert run.pick_device("cpu") == CPU
    with pytest.raises(run.ConfigError, match="2 processes need a GPU each, there are 1"):
        run.pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(run.ConfigError, match="2 processes need a GPU each, there are 1"):
        run.pick_device("auto")
