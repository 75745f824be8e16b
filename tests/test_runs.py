"""What a user relies on around the algorithm: the command line, files, resuming, errors.

The plumbing is one text in all scripts, so most tests take one on-policy and one off-policy script.
"""

import dataclasses
import importlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    EPISODIC,
    LANGUAGE,
    OFF_POLICY,
    ON_POLICY,
    ROLLOUTS,
    ROOT,
    SCRIPTS,
    TINY,
    checkpoint_of,
    each,
    environment,
    error_line,
    flags,
    main,
    only_folder,
    path_of,
    state_of,
    summary_of,
    table,
    train,
    without_clock,
)
from torch import distributed

import ppo

BOTH = each("ppo", "sac")
FILES = "args.json", "checkpoint.pt", "episodes.csv", "summary.json", "updates.csv"
assert_same_state = partial(torch.testing.assert_close, rtol=0, atol=0)  # to the last bit
FOR_EVER = {"env_id": "envs:Slow-v0", "total_timesteps": 10**7}


def start(script, *words, **settings) -> subprocess.Popen:
    """Starts the command line of a script in a process group of its own."""
    command = [sys.executable, path_of(script), *words, *flags(TINY[script] | settings)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    variables = environment() | {"PYTHONUNBUFFERED": ""}  # as it is on a user's machine
    # A test run in the background ignores SIGINT, and so would the script.
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, env=variables, start_new_session=True, **options)


def wait_for_rows(process, path, rows: int) -> None:
    """Until the run below path has more than these rows of updates."""
    deadline = time.time() + 120
    while not any(len(table(x)) > rows for x in path.glob("runs/*/updates.csv")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.01)


def contents(folder, *names) -> dict:
    return {name: (folder / name).read_bytes() for name in names}


# ── Command line and files ────────────────────────────────────────────────────────────────────────


@each("a3c", "ppo", "sac")  # that the others need no other file, test_copies.py tells
def test_a_file_runs_alone(script, tmp_path):
    """A copy in an empty folder trains, writes its files, and its policy loads and evaluates."""
    name = script.__name__
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    env_id = "CartPole-v1" if name in ROLLOUTS else "Pendulum-v1"
    settings = TINY[name] | {"env_id": env_id, "seed": 3, "eval_episodes": 1}
    settings |= {"total_timesteps": 600}
    command = [sys.executable, f"{name}.py", *flags(settings)]
    variables = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, env=variables, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    assert folder.name.startswith(f"{env_id}__{name}__3__") and folder.name in done.stdout
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    stored = json.loads((folder / "args.json").read_text())
    assert stored["script"] == name and settings.items() <= stored["args"].items()
    assert stored["versions"] == {x.__name__: x.__version__ for x in (torch, gym, np)}
    for file in ("episodes.csv", "updates.csv"):
        rows = table(folder / file)
        assert list(rows[0])[:2] == ["step", "seconds"] and len(rows) >= 2
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert list(table(folder / "episodes.csv")[0])[2:] == ["episode_return", "length"]

    # A stranger's checkpoint runs no code, and its policy evaluates as it did after training.
    checkpoint, summary = checkpoint_of(folder), summary_of(folder)
    assert checkpoint["step"] == summary["step"] >= settings["total_timesteps"]
    env = script.make_env(env_id)
    actor = script.Actor(env.observation_space, env.action_space)
    actor.load_state_dict(checkpoint["state"]["actor"])
    returns = script.evaluate(actor, env, 1, 10**6 * 3 + 999_999)
    assert returns == summary["evaluation_returns"] == [summary["evaluation_return"]]
    assert env.action_space.contains(actor.mode(env.observation_space.sample()))
    if name in ON_POLICY:  # the statistics are a part of the policy
        assert actor.obs_norm.count > 0 and (actor.obs_norm.std != 1).all()


def test_help(capsys):
    """What a user needs first comes first; every flag is explained."""
    with pytest.raises(SystemExit) as stop:
        main("ppo", "--help")
    printed = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert stop.value.code == 0
    shown = re.findall(r"(?m)^[│ ]*(--[a-z][a-z-]+)", printed)
    assert shown[:3] == ["--env-id", "--total-timesteps", "--seed"]
    assert shown.index("--gamma") < shown.index("--num-threads") < shown.index("--resume")
    assert "γ, discount factor" in printed


@pytest.mark.parametrize("script", ["ppo", "sac"])
def test_other_ways_to_run(script, tmp_path):
    """`import` runs nothing; the text pasted into a notebook, where no __file__ is, runs."""
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="imported")
    assert not list(tmp_path.iterdir())
    names = {"__name__": "__main__"}
    exec((ROOT / f"{script}.py").read_text(), names)
    names["train"](names["Args"](env_id="Pendulum-v1", **TINY[script]))
    assert (only_folder(tmp_path) / "summary.json").exists()


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_python_of_the_readme(env_id):
    """It trains, loads the policy, and its last line is an action that env.step takes."""
    (text,) = (x for x in readme_blocks("python") if "train(" in x)
    assert text.count("CartPole-v1") == 2
    text = re.sub(r"total_timesteps=[\d_]+", "total_timesteps=2_048", text)
    names = {}
    exec(text.replace("CartPole-v1", env_id), names)
    names["env"].step(names["action"])


def test_the_code_on_top_of_the_readme():
    assert readme_blocks("python")[0] in (ROOT / "ppo.py").read_text()


def test_commands_of_the_pages():
    """Each flag that stands behind the name of a script is one of its flags."""
    pages = "README.md", "benchmarks.md", "docs/numbers.md", "docs/exercises.md"
    text = "".join((ROOT / page).read_text() for page in pages).replace("\\\n", "")
    commands = re.findall(r"(\w+)\.py ([^`#|\n]*)", text)
    commands = [(script, words) for script, words in commands if script in SCRIPTS + LANGUAGE]
    assert sum("--" in words for _, words in commands) > 5
    for script, words in commands:
        names = {x.name for x in dataclasses.fields(importlib.import_module(script).Args)}
        used = {x.replace("-", "_").removeprefix("no_") for x in re.findall(r"--([a-z-]+)", words)}
        assert used - {"nproc_per_node", "standalone"} <= names, (script, words)


def test_video_and_weights_and_biases(tmp_path, monkeypatch):
    """--track, offline, and --capture-video in one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"env_id": "CartPole-v1", "eval_episodes": 2}
    process = start("ppo", "--track", "--capture-video", **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    folder = only_folder(tmp_path)
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = log.read_bytes()
    for name in (b"episodes/episode_return", b"updates/approx_kl", b"evaluation_return"):
        assert name in logged
    videos = list(folder.glob("videos/*.mp4"))
    assert len(videos) == 2 and all(video.stat().st_size > 1_000 for video in videos)


@BOTH
def test_video_that_cannot_be_recorded(script, tmp_path):
    """The run fails before it trains, not after, if the environment cannot draw itself."""
    with pytest.raises(NotImplementedError):
        train(script, capture_video=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each("reinforce", "a2c", "trpo", "ppo", *OFF_POLICY)
def test_cuda(script):
    folder = train(script, "Pendulum-v1", cuda=True, eval_episodes=1)
    train(script, "Pendulum-v1", cuda=True, total_timesteps=1_000, resume=folder)
    assert checkpoint_of(folder)["step"] >= 1_000
    train(script, "Pendulum-v1", total_timesteps=2_000, resume=folder)  # and on the CPU


# ── Seeds and resuming ────────────────────────────────────────────────────────────────────────────


@each(*EPISODIC, *OFF_POLICY)
def test_half_and_half_is_the_whole(script):
    """With one environment, N steps and some more after --resume are the same as all in one go."""
    total = TINY[script.__name__]["total_timesteps"] + 60
    half, whole = (train(script, total_timesteps=n, eval_episodes=1) for n in (total - 60, total))
    train(script, total_timesteps=total, eval_episodes=1, resume=str(half))  # a str or a Path
    assert without_clock(half) == without_clock(whole)
    assert_same_state(state_of(half), state_of(whole))
    assert summary_of(half) == summary_of(whole)


@each("a2c", "a3c", "trpo", "ppo")
def test_resume_with_several_environments(script, monkeypatch):
    """The rows go on where they ended, and the episodes start elsewhere."""
    starts, rollout = [], script.rollout

    def spy(envs, obs, *more):
        starts.append(obs.copy())
        return rollout(envs, obs, *more)

    monkeypatch.setattr(script, "rollout", spy)
    folder = train(script)
    before, first = without_clock(folder), starts[:1]
    starts.clear()
    train(script, total_timesteps=1_024, resume=folder)
    for name, rows in without_clock(folder).items():
        assert rows[: len(before[name])] == before[name] and len(rows) > len(before[name])
        assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    if script.__name__ != "a3c":  # its workers are other processes
        assert (starts[0] != first[0]).all()
    assert checkpoint_of(folder)["step"] >= 1_024


@each("ppo", "sac", "reinforce")
def test_kill(script, tmp_path):
    """kill -9 at random moments; what was saved goes on, without half rows and duplicates."""
    words = []
    for _ in range(2 if script.__name__ == "ppo" else 1):
        process = start(script.__name__, *words, save_every=0.0, **FOR_EVER)
        wait_for_rows(process, tmp_path, 12 if words else 6)
        time.sleep(random.Random().uniform(0, 0.3))
        process.kill()
        process.communicate()
        folder = only_folder(tmp_path)
        words = ["--resume", str(folder)]
    (folder / "notes.csv").write_text("the user's own\n")
    # What a kill between two saves, in the middle of a row and of a checkpoint leaves behind:
    for name in ("episodes.csv", "updates.csv"):
        rows = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*rows, rows[-1], rows[-1][:5]]))
    (folder / "checkpoint.tmp").write_bytes(b"half")

    saved = checkpoint_of(folder)["step"]
    total = saved + 60
    train(script, "envs:Slow-v0", total_timesteps=total, save_every=0.0, resume=folder)
    for name in ("episodes.csv", "updates.csv"):
        lines = (folder / name).read_text().splitlines()
        assert len({line.count(",") for line in lines}) == 1
    assert (folder / "notes.csv").read_text() == "the user's own\n"
    updates = [row["step"] for row in table(folder / "updates.csv")]
    assert updates == sorted(set(updates)) and saved in updates and saved > 0
    seconds = [row["seconds"] for row in table(folder / "updates.csv")]
    assert seconds == sorted(seconds)
    episodes = table(folder / "episodes.csv")
    assert all(row["length"] == 20 for row in episodes)
    if script.__name__ == "ppo":
        assert updates == list(range(64, total + 64, 64))
        return
    assert [row["step"] for row in episodes] == list(range(20, len(episodes) * 20 + 1, 20))
    assert total <= len(episodes) * 20 < total + 100
    unbroken = train(script, total_timesteps=total)
    assert without_clock(folder) == without_clock(unbroken)
    assert_same_state(state_of(folder), state_of(unbroken))


@BOTH
def test_kill_during_the_evaluation(script, monkeypatch):
    """Training is not lost, and no summary of an earlier state is left as if it were the last."""
    folder = train(script)
    total = TINY[script.__name__]["total_timesteps"] + 60
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(script, "evaluate", None)
        train(script, total_timesteps=total, resume=folder)
    rows = without_clock(folder)
    train(script, total_timesteps=total, resume=folder)
    assert summary_of(folder)["step"] >= total and without_clock(folder) == rows


@BOTH
def test_evaluation_alone(script, capsys):
    """--resume with --total-timesteps 0 shows the policy, and leaves the run as it was."""
    env_id = "CartPole-v1" if script.__name__ == "ppo" else "Pendulum-v1"
    folder = train(script, env_id, eval_episodes=1)
    for name in ("episodes.csv", "notes.csv"):  # rows since the checkpoint; the user's own file
        with open(folder / name, "a") as file:
            file.write("300,1,2,3\n")
    names = "args.json", "summary.json", "episodes.csv", "updates.csv", "notes.csv"
    before, state = contents(folder, *names), state_of(folder)
    capsys.readouterr()
    words = ["--resume", str(folder), "--total-timesteps", "0", "--capture-video", "--track"]
    main(script.__name__, *words)
    assert not (folder / "wandb").exists()
    assert contents(folder, *names) == before
    assert_same_state(state, state_of(folder))
    returns = json.loads(before["summary.json"])["evaluation_returns"]
    assert f"evaluation_return {returns[0]:,.7g}" in capsys.readouterr().out
    assert len(list(folder.glob("videos/*.mp4"))) == 1


@BOTH
def test_flags_given_with_resume_win(script):
    """A resumed run has its own arguments, but for those that are given."""
    folder = train(script, gamma=0.9, seed=5)
    before = json.loads((folder / "args.json").read_text())["args"]
    given = {"total_timesteps": before["total_timesteps"] + 60, "eval_episodes": 3}
    main(script.__name__, "--resume", str(folder), **given)
    after = json.loads((folder / "args.json").read_text())["args"]
    assert after == before | given
    assert summary_of(folder)["step"] >= given["total_timesteps"]
    assert len(set(summary_of(folder)["evaluation_returns"])) == 3  # other episodes, not one thrice


@each(*[name for name in SCRIPTS if name != "a3c"])  # its workers race
def test_learning_rate_given_with_resume_wins(script):
    """With a learning rate of 0 the networks move no more, whatever the checkpoint says."""
    folder = train(script)
    first, names = state_of(folder), [f.name for f in dataclasses.fields(script.Args)]
    rates = dict.fromkeys([x for x in names if x.endswith(("learning_rate", "_lr"))], 0.0)
    rates.pop("anneal_lr", None)
    total = TINY[script.__name__]["total_timesteps"] + 70
    train(script, **rates, total_timesteps=total, resume=folder)
    second = state_of(folder)
    networks = {"actor", "critic", "critics"} & first.keys()
    for network in networks - ({"actor"} if script.__name__ == "trpo" else set()):
        for name, value in first[network].items():
            # A critic's last layer moves against its statistics, so that its values stay.
            if "norm" not in name and not (network == "critic" and name.startswith("net.4")):
                assert torch.equal(value, second[network][name]), f"{network}.{name}"


# ── Errors: one line, the last on the screen, without a traceback ─────────────────────────────────

ERRORS = [
    ("ppo", {"env_id": "HalfCheeta-v4"}, "HalfCheetah"),
    ("sac", {"env_id": "no_such_module:Env-v0"}, "no_such_module"),
    ("ppo", {"env_id": "envs:WholeNumbers-v0"}, "cannot choose actions from Box"),
    ("ppo", {"env_id": "envs:Lists-v0"}, "cannot flatten the observations"),
    ("ppo", {"env_id": "envs:Mission-v0"}, "cannot flatten the observations"),
    ("ppo", {"num_minibatches": 65}, "num_minibatches must be at most num_steps * num_envs"),
    ("ppo", {"env_id": "envs:NoReward-v0"}, "reward nan"),
    ("sac", {"env_id": "envs:TwoRewards-v0"}, "reward ["),
    *((name, {"env_id": "envs:Unbounded-v0"}, "finite bounds") for name in OFF_POLICY),
    *((name, {"env_id": "envs:Huge-v0"}, "finite bounds") for name in OFF_POLICY),
    *((name, {"env_id": "CartPole-v1"}, "finite bounds") for name in OFF_POLICY),
    *((name, {"cuda": True}, "no GPU") for name in ("ppo", "sac") if not torch.cuda.is_available()),
]


@pytest.mark.parametrize("script, bad, message", ERRORS)
def test_user_errors(script, bad, message, capsys):
    assert message in error_line(capsys, script, **{"env_id": "Pendulum-v1"} | TINY[script] | bad)


@each(*SCRIPTS)
def test_sizes_that_allow_nothing(script, tmp_path):
    """0 for whatever is counted, fewer than 0 steps; named, before anything is made."""
    may_be_0 = {"seed", "total_timesteps", "learning_starts", "eval_episodes"}
    counts = {f.name for f in dataclasses.fields(script.Args) if f.type in (int, "int")}
    assert counts > may_be_0 - {"learning_starts"}
    bad = [(name, 0) for name in counts - may_be_0] + [("total_timesteps", -5)]
    for name, value in bad:
        with pytest.raises(gym.error.Error, match=name.replace("_", "[-_]")):
            script.train(script.Args(env_id="Pendulum-v1", **{name: value}))
    assert not list(tmp_path.iterdir())


def test_track_without_a_key(tmp_path, monkeypatch):
    """It says so at once. There is no terminal to ask for the key."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    process = start("ppo", "--track", env_id="CartPole-v1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in output
    assert "API key" in output.strip().splitlines()[-1]


@BOTH
def test_broken_files(script, tmp_path, capsys):
    """A folder that is none, another script's run, a file that is empty, cut in the middle or of
    another version is named."""
    assert "nowhere" in error_line(capsys, script.__name__, "--resume", "nowhere")
    assert not (tmp_path / "nowhere").exists()
    folder = train(script)
    line = error_line(capsys, "reinforce", "--resume", str(folder))
    assert f"a run of {script.__name__}.py" in line
    words = ["--resume", str(folder), "--total-timesteps", "2000"]
    files = contents(folder, "checkpoint.pt", "args.json")
    other = json.loads(files["args.json"])
    other["args"]["a_flag_of_another_version"] = 1
    torch.save({"weights": torch.ones(3)}, folder / "other.pt")
    bad = [(name, x[: len(x) // 2]) for name, x in files.items()] + [(name, b"") for name in files]
    bad += [("args.json", json.dumps(other).encode())]
    bad += [("checkpoint.pt", (folder / "other.pt").read_bytes())]
    for name, content in bad:
        (folder / name).write_bytes(content)
        assert name in error_line(capsys, script.__name__, *words), len(content)
        (folder / name).write_bytes(files[name])
    line = error_line(capsys, script.__name__, *words, "--env-id", "Pendulum-v1")
    assert "checkpoint.pt" in line  # the shapes are others
    # Deleted tables begin anew, with a header, and without the bytes that are missing.
    for name in ("episodes.csv", "updates.csv"):
        (folder / name).unlink()
    total = TINY[script.__name__]["total_timesteps"]
    train(script, total_timesteps=total + 100, resume=folder)
    for name in ("episodes.csv", "updates.csv"):
        assert (folder / name).read_text().startswith("step,seconds,")
        assert table(folder / name)[0]["step"] > total


@pytest.mark.parametrize("script", ["ppo", "a3c"])
def test_error_while_the_bar_is_open(script, tmp_path):
    """The bar ends before the error, and is not drawn again below it; all processes end at once."""
    more = {"num_workers": 2} if script == "a3c" else {}
    process = start(script, env_id="envs:NaNReward-v0", total_timesteps=10**7, **more)
    try:
        output, _ = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    last = output.strip().split("\n")[-1]
    assert last.startswith("FloatingPointError: ") and "reward nan" in last
    assert process.returncode == 1
    assert "Traceback" not in output and only_folder(tmp_path).name in output


def test_bugs_keep_their_traceback():
    with pytest.raises(TypeError, match="NoneType"):
        main("ppo", env_id="envs:Raises-v0", **TINY["ppo"])


@pytest.mark.parametrize("script", ["ppo", "a3c"])
def test_interrupt(script, tmp_path):
    """Ctrl-C, which reaches all processes of the group, ends them without a traceback."""
    process = start(script, **FOR_EVER, **({"num_workers": 2} if script == "a3c" else {}))
    wait_for_rows(process, tmp_path, 0)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert only_folder(tmp_path).name in output and process.returncode == 1
    assert "Traceback" not in output and output.strip().splitlines()[-1].startswith("Keyboard")


def test_full_disk():
    """A checkpoint that cannot grow: one line, and the last one is kept."""
    folder = train("sac")
    before = contents(folder, "checkpoint.pt")
    command = [sys.executable, str(ROOT / "sac.py"), "--resume", str(folder), "--save-every", "0"]
    limit = (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = subprocess.run(
        [*command, "--total-timesteps", "4000"],
        env=environment(),
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search("File too large|disk full", done.stderr.strip().splitlines()[-1])
    assert contents(folder, "checkpoint.pt") == before
    train("sac", total_timesteps=300, resume=folder)  # once there is room again


# ── Several processes, --compile ──────────────────────────────────────────────────────────────────


def torchrun(*words: str, **settings) -> subprocess.CompletedProcess:
    """ppo.py in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", str(ROOT / "ppo.py"), *words, *flags(TINY["ppo"] | settings)]
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(command, env=environment(), check=False, timeout=120, **pipes)


def test_two_processes(tmp_path):
    """They share the environments, and one run is written, with the steps, episodes and rows that
    one process would have; a run that is resumed ends in both."""
    settings = {"env_id": "envs:Move-v0", "num_envs": 4, "stagger": False}
    done = torchrun(**settings)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    one = train("ppo", **settings)
    found, expected = without_clock(folder), without_clock(one)
    for name, rows in found.items():
        for column in {"step", "length"} & rows[0].keys():
            assert [x[column] for x in rows] == [x[column] for x in expected[name]]
    returns = [row["episode_return"] for row in found["episodes.csv"]]
    assert len(set(returns)) == len(returns)  # the environments and the noise differ
    for name in ("actor", "critic"):
        count = state_of(folder)[name]["obs_norm.count"]
        assert count == state_of(one)[name]["obs_norm.count"]
    done = torchrun("--resume", str(folder), **settings | {"total_timesteps": 768})
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in table(folder / "updates.csv")] == list(range(128, 896, 128))


def test_other_ranks_act_with_the_policy_of_rank_0(monkeypatch):
    env = ppo.make_env("CartPole-v1")
    mine, theirs = (ppo.Actor(env.observation_space, env.action_space) for _ in range(2))
    monkeypatch.setattr(ppo, "from_rank_0", lambda state: theirs.state_dict())
    answers = dict(is_initialized=True, get_world_size=2, get_rank=1, gather_object=None)
    for name, answer in answers.items():
        monkeypatch.setattr(distributed, name, lambda *_, answer=answer: answer)
    ppo.rollout_of_all([env], env.reset(seed=1)[0][None], mine, 4)
    assert_same_state(mine.state_dict(), theirs.state_dict())


def test_an_error_in_one_process_ends_both(tmp_path):
    """Only the environments of rank 1 raise. The current folder has them, without PYTHONPATH."""
    (tmp_path / "half.py").write_text(
        "import os, gymnasium, envs\n"
        "make = envs.Counter if os.environ['RANK'] == '0' else envs.KINDS['Raises'][0]\n"
        "gymnasium.register('Half-v0', make)\n"
    )
    started = time.time()
    done = torchrun(env_id="half:Half-v0", total_timesteps=10**7)
    assert done.returncode != 0 and "NoneType" in done.stderr
    assert time.time() - started < 60


@each("ppo", *OFF_POLICY)
def test_compile(script, monkeypatch):
    """The update is one graph, and gives the numbers of the eager one.

    Only PPO's is translated to C++ here, which takes long; of the others only the graph is made.
    """
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    if script.__name__ != "ppo":
        compile = torch.compile
        only_graph = {"backend": "aot_eager"}
        monkeypatch.setattr(torch, "compile", lambda x, options: compile(x, **only_graph))
    elif not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    total = 192 if script.__name__ == "ppo" else 180  # 3 and 40 updates
    eager, graph = (train(script, compile=x, total_timesteps=total) for x in (False, True))
    for first, second in zip(*(without_clock(x)["updates.csv"] for x in (eager, graph))):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-4)
    first, second = state_of(eager)["actor"], state_of(graph)["actor"]
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-2, atol=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == (2 if script.__name__ == "td3" else 1)
    assert not counters["graph_break"]
