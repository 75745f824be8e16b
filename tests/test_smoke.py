"""The scripts run: from the command line and from Python, on both kinds of action space."""

import importlib
import json
import math
import re
import shlex
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch._dynamo
import tyro
from conftest import (
    EPISODIC, OFF_POLICY, ROOT, SCRIPTS, TINY, command_line, probe, run, table, without_clock,
)  # fmt: skip
from probes import Probe

import ppo

DISCRETE = [script for script in SCRIPTS if script not in OFF_POLICY]
CASES = [(script, "CartPole-v1") for script in DISCRETE]
CASES += [(script, "Pendulum-v1") for script in SCRIPTS]
BOUNDS = "low", "high", "middle", "half_range"  # of the actions: constants of an actor


@pytest.mark.parametrize("script, env_id", CASES)
def test_train(script, env_id, monkeypatch):
    """train(Args(...)) moves every parameter, logs finite numbers, and saves the policy it evaluates."""
    module = importlib.import_module(script)
    first, save = {}, module.Run.save

    def spy(run):
        save(run)
        if not first:  # before the first step
            first.update(torch.load(run.folder / "checkpoint.pt", weights_only=True)["state"])

    monkeypatch.setattr(module.Run, "save", spy)
    args = module.Args(env_id=env_id, **TINY[script])
    folder = module.train(args)
    updates, episodes = table(folder / "updates.csv"), table(folder / "episodes.csv")
    assert list(updates[0])[:3] == ["step", "seconds", "steps_per_second"]
    assert list(episodes[0]) == ["step", "return", "length", "seconds"]
    total = TINY[script]["total_timesteps"]
    if script not in EPISODIC:
        assert updates[-1]["step"] == total
    assert all(math.isfinite(number) for row in updates + episodes for number in row.values())
    assert json.loads((folder / "args.json").read_text())["args"]["env_id"] == env_id

    # In another process one would do the same: make the spaces, load, evaluate.
    env = module.make_env(env_id)
    actor = module.Actor(env.observation_space, env.action_space)
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == total
    actor.load_state_dict(checkpoint["state"]["actor"])
    # The statistics have seen every observation: of REINFORCE's, those of the finished episodes.
    used = sum(row["length"] for row in episodes) if script in EPISODIC else total
    for network in checkpoint["state"].keys() & {"actor", "critic"}:
        state = checkpoint["state"][network]
        counts = [value for name, value in state.items() if name.endswith("count")]
        assert all(count == used for count in counts), network
        assert counts or script in OFF_POLICY
    networks = {name for name in first if not name.endswith("optimizer") and name != "buffer"}
    assert networks >= {"actor"} and (script == "reinforce" or len(networks) > 1)
    for network in networks:  # targets and the temperature too
        for name, before in first[network].items():
            still = torch.equal(before, checkpoint["state"][network][name])
            assert still == (name in BOUNDS), f"{network}.{name}"
    summary = json.loads((folder / "summary.json").read_text())
    returns = module.evaluate(actor, env_id, args.eval_episodes, 10**6 * args.seed + 999_999)
    assert returns == summary["evaluation_returns"]
    assert module.evaluate(actor, env_id, 2, seed=5) == module.evaluate(actor, env_id, 2, seed=5)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "a3c"])
def test_no_gradient_is_left_over(monkeypatch, script):
    """Each backward pass starts from gradients of zero: no update adds to the one before it."""
    module, networks, passes, backward = (
        importlib.import_module(script),
        [],
        [],
        torch.Tensor.backward,
    )
    for name in {"Actor", "Critic", "Temperature"} & vars(module).keys():

        def init(self, *spaces, original=getattr(module, name).__init__):
            original(self, *spaces)
            networks.append(self)

        monkeypatch.setattr(getattr(module, name), "__init__", init)

    def spy(loss, *args, **more):
        for parameter in (parameter for network in networks for parameter in network.parameters()):
            assert parameter.grad is None or not parameter.grad.any()
        passes.append(loss)
        return backward(loss, *args, **more)

    monkeypatch.setattr(torch.Tensor, "backward", spy)
    module.train(module.Args(env_id="Pendulum-v1", **TINY[script] | {"eval_episodes": 0}))
    assert len(passes) >= 3 and networks


@pytest.mark.parametrize(
    "script", [script for script in DISCRETE if script not in ("reinforce", "a3c")]
)
def test_statistics_move_before_the_fit_and_leave_the_values(monkeypatch, script):
    """In each update the critic's statistics move once, before its fit, which corrects what that
    changes of V_w; the targets' change nothing, as the last layer moves against them."""
    module, critics, events, kept = importlib.import_module(script), [], [], []
    init, update, backward = (
        module.Critic.__init__,
        module.RunningNorm.update,
        torch.Tensor.backward,
    )
    states = 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))

    def spy_init(self, space):
        init(self, space)
        critics.append(self)

    def spy_update(norm, batch):
        (critic,) = critics
        if norm in critic.children():
            events.append("statistics")
        if norm is critic.return_norm and norm.count > 0:
            assert abs(norm.mean - batch.mean()) > 0.01  # so it will move
            kept.append(critic(states).detach())
        update(norm, batch)

    def spy_backward(loss):
        if events[-1:] == ["statistics"] and kept:
            np.testing.assert_allclose(critics[0](states).detach(), kept[-1], rtol=1e-4, atol=1e-4)
        events.append("fit")
        backward(loss)

    def log_update(self, **metrics):
        assert events.count("statistics") == 2 and events[-1] == "fit", events
        events.clear()

    monkeypatch.setattr(module.Critic, "__init__", spy_init)
    monkeypatch.setattr(module.RunningNorm, "update", spy_update)
    monkeypatch.setattr(torch.Tensor, "backward", spy_backward)
    monkeypatch.setattr(module.Run, "log_update", log_update)
    module.train(module.Args(env_id="Pendulum-v1", **TINY[script] | {"eval_episodes": 0}))
    assert len(critics) == 1 and not events and kept


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluation_is_deterministic_and_changes_nothing(script):
    module = importlib.import_module(script)
    env = module.make_env("Pendulum-v1")
    actor = module.Actor(env.observation_space, env.action_space)
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    first, second = (module.evaluate(actor, "Pendulum-v1", 2, seed=3) for _ in range(2))
    assert first == second and first[0] != first[1]  # seeded once, not in each episode
    for name, value in actor.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_same_seed_same_run(script):
    """Two runs with one seed give the same files but for the clock; another seed gives others."""
    module = importlib.import_module(script)
    settings = TINY[script] | ({"num_workers": 1} if script == "a3c" else {})  # 2: in any order
    folders = [
        module.train(module.Args(env_id="Pendulum-v1", seed=s, **settings)) for s in (1, 1, 2)
    ]
    for name in ("updates.csv", "episodes.csv"):
        first, second, third = (without_clock(folder / name) for folder in folders)
        assert first == second != third


@pytest.mark.parametrize("script", SCRIPTS)
def test_returns_and_lengths_are_logged(script):
    """An episode of one step that pays 7."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(env_id=probe(script, "OneStep"), eval_episodes=2)
    folder = module.train(module.Args(**settings))
    episodes = table(folder / "episodes.csv")
    assert {(row["return"], row["length"]) for row in episodes} == {(7, 1)}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation_returns"] == [7, 7] and summary["training_return"] == 7


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "a3c"])
def test_environments_are_seeded_once(script, monkeypatch):
    """Each by a number of its own, before its first episode; a resumed run's, alone, not at all."""
    module, seeds, reset = importlib.import_module(script), [], Probe.reset

    def spy(env, *, seed=None, options=None):
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(Probe, "reset", spy)
    settings = TINY[script] | dict(env_id=probe(script, "Slow"), seed=7, eval_episodes=0)
    folder = module.train(module.Args(**settings))
    given = [seed for seed in seeds if seed is not None]
    several = settings.get("num_envs", 1)
    assert given == [7 * 10**6 + n for n in range(several)] and len(seeds) > several + 3
    if several == 1:
        seeds.clear()
        total = settings["total_timesteps"] + 100
        module.train(module.Args(**settings | dict(resume=folder, total_timesteps=total)))
        assert seeds and not any(seeds)


@pytest.mark.parametrize("script", SCRIPTS)
def test_older_random_generators(script):
    """dm_control's: their seeds have 32 bits, also that of the evaluation, of however large a seed."""
    module = importlib.import_module(script)
    settings = TINY[script] | dict(env_id=probe(script, "OldGenerator"))
    folder = module.train(module.Args(**settings, seed=4294))
    module.train(module.Args(**settings, seed=4294, resume=folder))
    env = module.make_env(settings["env_id"])
    env.reset(seed=1)
    draw = env.unwrapped.np_random.standard_normal
    draw(2)  # with the observation's an odd number: the generator holds one more
    state = module.random_state(env)
    numbers = draw(700)  # more than its state has words
    module.set_random_state(env, state)
    np.testing.assert_array_equal(draw(700), numbers)
    torch.save(state, "state.pt")
    assert torch.load("state.pt", weights_only=True) == state


@pytest.mark.parametrize("script", SCRIPTS)
def test_progress_before_the_first_update(script):
    """Each episode moves the bar: the first update may be long in coming."""
    module = importlib.import_module(script)
    run = module.Run(module.Args(env_id="Pendulum-v1", total_timesteps=100))
    run.step = 30
    run.log_episode(7.0, 30)
    assert run.bar.n == 30 and "return 7.0" in str(run.bar)
    run.step = 40
    run.log_update(loss=1.0)
    assert run.bar.n == 40


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    "script", [script for script in SCRIPTS if script not in ("reinforce", "a3c")]
)
def test_compile_agrees(script):
    """--compile gives the numbers of the eager run within rounding, over the first updates.

    And each update is one graph: nothing in it, nor in the optimizer's step, breaks it.
    """
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    module = importlib.import_module(script)
    # Off-policy there is a row for each episode: short ones, so that these are the first updates.
    env_id = probe(script, "TimeLimit") if script in OFF_POLICY else "Pendulum-v1"
    settings = TINY[script] | {"env_id": env_id, "eval_episodes": 0}
    eager, graph = (
        table(module.train(module.Args(**settings | {"compile": c})) / "updates.csv")[:2]
        for c in (False, True)
    )
    for first, second in zip(eager, graph):
        for name in first.keys() - {"seconds", "steps_per_second"}:
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-5), name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        assert not counters["graph_break"]


@pytest.mark.parametrize("done", [0, 3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.99)])
def test_traceable_optimizer(betas, done):
    """The step that is written out for --compile is PyTorch's, from its state on and back to it."""
    module, make = importlib.import_module("ppo"), partial(torch.optim.Adam, betas=betas)
    torch.manual_seed(0)
    shapes = (3, 2), (4,), ()
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    copies = [torch.nn.Parameter(x.detach().clone()) for x in parameters]
    ours, theirs = (make(x, 0.1, eps=1e-3) for x in (parameters, copies))

    def steps(number):
        for _ in range(number):
            for x, y in zip(parameters, copies):
                x.grad = torch.randn(x.shape)
                y.grad = x.grad.clone()
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()

    steps(done)
    step_size = module.make_traceable(ours)
    steps(4)
    step_size.fill_(0.02)
    theirs.param_groups[0]["lr"] = 0.02
    steps(4)
    for x, y in zip(parameters, copies):
        assert x.grad is None
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)
    again = make(parameters, 0.02, eps=1e-3)
    again.load_state_dict(ours.state_dict())
    again.param_groups[0]["lr"] = 0.02
    ours = again
    steps(2)
    for x, y in zip(parameters, copies):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_optimizers_that_compile_does_not_serve():
    module, parameters = importlib.import_module("ppo"), [torch.nn.Parameter(torch.zeros(1))]
    for optimizer in (
        torch.optim.SGD(parameters, 0.1),
        torch.optim.Adam(parameters, 0.1, weight_decay=0.1),
        torch.optim.RMSprop(parameters, 0.1),
    ):
        with pytest.raises(TypeError, match="compile serves plain Adam, not"):
            module.make_traceable(optimizer)


@pytest.mark.parametrize("script", DISCRETE)
def test_discrete_observations(script):
    """FrozenLake's are numbers, and it takes actions that it can look up in a dictionary."""
    module = importlib.import_module(script)
    module.train(module.Args(env_id="FrozenLake-v1", **TINY[script]))


def test_zero_is_a_coefficient():
    module = importlib.import_module("ppo")
    settings = TINY["ppo"] | dict(ent_coef=0, vf_coef=0, target_kl=0, eval_episodes=0)
    module.train(module.Args(env_id="CartPole-v1", **settings))


@pytest.mark.parametrize("script", DISCRETE)
def test_nested_observations_and_numbered_actions(script):
    """A Dict is flattened; Discrete(2, start=3) is served as 3 and 4 (the probe checks them)."""
    module = importlib.import_module(script)
    module.train(module.Args(env_id="probes:Nested-v0", **TINY[script]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_images_are_flattened_with_a_warning(script):
    """There are no convolutional networks: who trains on images should know that, others not."""
    module = importlib.import_module(script)
    with pytest.warns(UserWarning, match="Images-v0 shows images, .4, 5, 3.; .* flat vectors"):
        env = module.make_env("probes:Images-v0")
    assert env.reset()[0].shape == (60,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.make_env("probes:Nested-v0")


@pytest.mark.parametrize("script", SCRIPTS)
def test_box_actions_of_any_shape_and_bounds(script):
    module = importlib.import_module(script)
    module.train(module.Args(env_id="probes:Lopsided-v0", **TINY[script]))


@pytest.mark.parametrize("script", SCRIPTS)
def test_bounds_that_float32_rounds(script):
    """The environment's own bounds hold to the bit: at first, and where the policy is at one."""
    module = importlib.import_module(script)
    module.train(module.Args(env_id="probes:Narrow-v0", **TINY[script]))
    module.train(module.Args(env_id="probes:Wide-v0", **TINY[script]))  # beyond float32's range
    env = module.make_env("probes:Narrow-v0")
    space = env.action_space
    actor = module.Actor(env.observation_space, space)
    for bias in (-50.0, 50.0):
        torch.nn.init.constant_(actor.net[-1].bias, bias)
        action = actor.mode(torch.ones(1, 1)).numpy()[0]
        assert space.contains(action)
        assert abs(action - (space.low if bias < 0 else space.high)).max() < 1e-6


@pytest.mark.parametrize("script", SCRIPTS)
def test_mujoco(script):
    module = importlib.import_module(script)
    # The HalfCheetah's episodes have 1,000 steps; the Hopper's are short at first.
    env_id = "Hopper-v4" if script in EPISODIC + OFF_POLICY else "HalfCheetah-v4"
    folder = module.train(module.Args(env_id=env_id, **TINY[script] | {"eval_episodes": 0}))
    assert len(table(folder / "updates.csv")) >= 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line(script, "--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for flag in ("--env-id", "--total-timesteps", "--resume", "--eval-episodes", "--gamma"):
        assert flag in printed
    assert "γ, discount factor [" in " ".join(printed.replace("│", " ").split())


def test_cleanrl_command_line(tmp_path, monkeypatch):
    """A CleanRL command line for PPO, W&B (offline) and video included."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = shlex.split(
        "--seed 1 --env-id CartPole-v1 --total-timesteps 1024 --num-envs 4 --num-steps 128 --track "
        "--wandb-project-name x --capture-video --anneal-lr --no-norm-adv --clip-vloss --target-kl 0.02"
    )
    done = run("ppo", *words, "--eval-episodes", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/CartPole-v1__ppo__1__*")
    stored = json.loads((folder / "args.json").read_text())["args"]
    assert stored["anneal_lr"] and stored["clip_vloss"] and not stored["norm_adv"]
    assert stored["target_kl"] == 0.02 and stored["wandb_project_name"] == "x"
    (video,) = folder.glob("videos/*.mp4")
    assert video.stat().st_size > 1000
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("script", EPISODIC)
def test_environment_that_writes_into_its_observation(script, monkeypatch):
    """The episode keeps what was observed, though the environment has written over its array."""
    module, episodes = importlib.import_module(script), []
    play = module.play_episode

    def spy(*args):
        episode = play(*args)
        episodes.append(episode)
        return episode

    monkeypatch.setattr(module, "play_episode", spy)
    settings = TINY[script] | dict(total_timesteps=60, batch_size=20)
    module.train(module.Args(env_id="probes:Reuse-v0", **settings))
    assert len(episodes) == 6
    for observations, *_ in episodes:
        assert (observations.diff(dim=0) == 1).all() and observations.shape == (10, 1)


def test_ablations_still_fit(monkeypatch):
    """Each variant of benchmarks/ablations.py changes ppo.py, and leaves a program or an argument."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ablations = importlib.import_module("ablations")
    default = (ROOT / "ppo.py").read_text()
    for variant, (_, words, replacements) in ablations.VARIANTS.items():
        text = ablations.patched(variant, default)
        compile(text, variant, "exec")
        assert (text != default) == bool(replacements)
        assert (tyro.cli(ppo.Args, args=words) != ppo.Args()) == bool(words)
        assert variant == "default" or words or replacements


def test_benchmark_runner(monkeypatch, tmp_path, capsys):
    """A job that was broken off is resumed, its row and its curve are complete; a finished one is skipped."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runner = importlib.import_module("run")
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runner, "WORK", tmp_path / "work")
    monkeypatch.setattr(runner, "commit", lambda scripts: "abc1234")
    flags_ = "--total-timesteps 600 --batch-size 150"
    monkeypatch.setitem(runner.FLAGS, ("reinforce", "Pendulum-v1"), flags_)
    code = runner.code_hash((ROOT / "reinforce.py").read_text())
    given = f"--env-id Pendulum-v1 --seed 3 {flags_} --eval-episodes 2".split()
    folder = runner.folder_of("reinforce__Pendulum-v1__3", code, given)
    folder.mkdir(parents=True)
    half = dict(env_id="Pendulum-v1", seed=3, total_timesteps=400, batch_size=150, eval_episodes=0)
    assert run("reinforce", cwd=folder, **half).returncode == 0  # as far as it came
    words = "--scripts reinforce --env-ids Pendulum-v1 --seeds 3 --workers 1 --eval-episodes 2"
    monkeypatch.setattr("sys.argv", ["run.py", *words.split()])
    runner.main()
    (row,) = runner.read(tmp_path / "results" / "runs.csv")
    assert row["steps"] == "600" and row["flags"] == flags_ and row["commit"] == "abc1234"
    curve = runner.read(tmp_path / "results" / "curves" / "reinforce__Pendulum-v1.csv")
    assert [int(point["step"]) for point in curve] == [204, 402, 600]  # hundredths: 200, 400, 600
    assert float(row["training_return"]) == pytest.approx(
        sum(float(point["return"]) for point in curve) / 3, abs=0.1
    )
    assert not folder.exists() and "[1/1] reinforce Pendulum-v1 seed 3" in capsys.readouterr().out
    runner.main()
    assert len(runner.read(tmp_path / "results" / "runs.csv")) == 1
    report = importlib.import_module("report")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    assert "| reinforce.py" not in report.returns()  # two evaluation episodes are too few
    monkeypatch.setattr(report, "EVAL_EPISODES", 2)
    assert "| reinforce.py | Pendulum-v1 | 600 | 1 |" in report.returns()
    text = (ROOT / "benchmarks.md").read_text()
    assert report.fill(text, "returns", "| new |").count("| new |") == 1


def test_readme_example():
    """The Python code in the README runs as it stands, but for its length."""
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "total_timesteps=100_000" in code
    names = {}
    exec(code.replace("total_timesteps=100_000", "total_timesteps=2_048"), names)
    assert names["env"].action_space.contains(names["action"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_video_of_mujoco_or_a_clear_message(script, tmp_path, monkeypatch):
    """Where neither EGL nor OSMesa is installed, the run says so before it starts."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    words = ["--capture-video", "--env-id", "probes:ShortCheetah-v0"]
    done = run(script, *words, cwd=tmp_path, **TINY[script])
    if done.returncode == 0:
        assert len(list(tmp_path.glob("runs/*/videos/*.mp4"))) == 1
    else:
        assert (
            "ValueError: capture_video is set, but probes:ShortCheetah-v0 cannot be recorded"
            in done.stderr
        )
        assert "MUJOCO_GL" in done.stderr and not (tmp_path / "runs").exists()
