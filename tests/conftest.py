"""What all tests share: the scripts, tiny settings, and a fresh working folder for each test."""

import csv
import importlib.util
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # no windows
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EPISODIC = ["reinforce", "reinforce_baseline"]  # update after whole episodes of one environment
ROLLOUTS = ["a2c", "a3c", "trpo", "ppo"]  # update after T steps in each of N environments
ON_POLICY = EPISODIC + ROLLOUTS
OFF_POLICY = ["ddpg", "td3", "sac"]
SCRIPTS = ON_POLICY + OFF_POLICY
LANGUAGE = ["rlhf", "grpo"]  # policies that write; no environments of Gymnasium
LABEL = re.compile(r"\[((?:AC|CS|L3|L10|P7|X)-[\w./]+)\]")

OFF = {"total_timesteps": 180, "learning_starts": 140, "batch_size": 16, "buffer_size": 2_000}
TINY = {  # arguments of a run of a few updates
    "reinforce": {"total_timesteps": 400, "batch_size": 100},
    "reinforce_baseline": {"total_timesteps": 400, "batch_size": 100, "critic_epochs": 2},
    "a2c": {"total_timesteps": 512, "num_envs": 2, "num_steps": 32},
    "a3c": {"total_timesteps": 512, "num_workers": 1, "num_steps": 32},
    "trpo": {"total_timesteps": 512, "num_envs": 2, "num_steps": 32, "critic_epochs": 2},
    "ppo": {"total_timesteps": 512, "num_envs": 2, "num_steps": 32, "update_epochs": 2}
    | {"num_minibatches": 4},
} | dict.fromkeys(OFF_POLICY, OFF)
TINY = {script: settings | {"eval_episodes": 0} for script, settings in TINY.items()}


def pytest_addoption(parser):
    parser.addoption("--exercises", action="store_true", help="exercises/ replaces the originals")


def pytest_configure(config):
    if config.getoption("--exercises"):
        sys.path.insert(0, str(ROOT / "exercises"))


def pytest_report_header(config):
    if config.getoption("--exercises"):
        names = sorted(path.name for path in (ROOT / "exercises").glob("*.py"))
        return f"in place of the originals: {', '.join(names) or 'nothing, exercises/ is empty'}"


def path_of(script: str) -> str:
    """The file that `import` finds: the original, or with --exercises the one in exercises/."""
    return importlib.util.find_spec(script).origin


def pytest_collection_modifyitems(items):
    """`python -m pytest -k AC-09b` runs the tests whose docstrings name this equation."""
    for item in items:
        item.extra_keyword_matches.update(LABEL.findall(item.function.__doc__ or ""))


def each(*names: str):
    """Parametrises a test by the modules of these scripts."""
    modules = [importlib.import_module(name) for name in names]
    return pytest.mark.parametrize("script", modules, ids=names)


def env_for(script: str, name: str) -> str:
    """The id of an environment of tests/envs.py, with actions that the script can choose."""
    return f"envs:{'Box' if script in OFF_POLICY else ''}{name}-v0"


def train(script, env_id: str = "envs:Move-v0", **settings) -> Path:
    """Runs a script, given as a module or by name, for a few updates; the run's folder."""
    script = importlib.import_module(script) if isinstance(script, str) else script
    return script.train(script.Args(env_id=env_id, **TINY[script.__name__] | settings))


def flags(settings: dict) -> list[str]:
    """{"num_envs": 2, "anneal_lr": False} → ["--num-envs", "2", "--no-anneal-lr"]"""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return words


def main(script: str, *words: str, **settings) -> None:
    """What the command line does, without the seconds that a new process needs for its imports."""
    sys.argv = [f"{script}.py", *words, *flags(settings)]
    runpy.run_path(path_of(script), run_name="__main__")


def error_line(capsys, script: str, *words: str, **settings) -> str:
    """The last line on the screen after a command line that fails, without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(script, *words, **settings)
    assert isinstance(stop.value.code, str)  # else tyro refuses the command line itself
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return stop.value.code.strip().splitlines()[-1]


def only_folder(path: Path) -> Path:
    """The folder of the only run below path."""
    (folder,) = path.glob("runs/*")
    return folder


def environment() -> dict[str, str]:
    """The variables of a subprocess: it finds the environments of tests/envs.py."""
    variables = {"PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return os.environ | variables


def table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file as numbers."""
    with open(path) as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def without_clock(folder: Path) -> dict:
    """The rows of both CSV files but for the column that depends on the machine's speed."""
    names = "episodes.csv", "updates.csv"
    return {name: [row | {"seconds": 0} for row in table(folder / name)] for name in names}


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def state_of(folder: Path) -> dict:
    """What the run's checkpoint holds of networks, optimizers and replay buffer."""
    return checkpoint_of(folder)["state"]


def summary_of(folder: Path) -> dict:
    """summary.json but for the number that depends on the machine's speed."""
    return json.loads((folder / "summary.json").read_text()) | {"seconds": 0}


@pytest.fixture(autouse=True)
def fresh_folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, on one thread, from the same random numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    torch.set_num_threads(1)
    torch.manual_seed(0)
