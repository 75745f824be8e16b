"""What holds across the scripts: shared text, labels, order, names, and that each stands alone."""

import ast
import difflib
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tokenize

import pytest
import torch
from conftest import EPISODIC, OFF_POLICY, ON_POLICY, ORDER, ROOT, SCRIPTS, TINY, environment, flags

WITH_V = ["reinforce_baseline", "a2c", "a3c", "trpo", "ppo"]
# reinforce takes one step in 2,048 rows; in a3c each worker would compile its own.
COMPILED = [name for name in ORDER if name not in ("reinforce", "a3c")]

# Top-level definitions that are the same to the letter wherever they stand, and where they must stand.
SHARED = {
    # plumbing
    "prepare": ORDER,
    "compiled": COMPILED,
    "make_traceable": COMPILED,
    "make_env": ORDER,
    "EpisodeInfo": ORDER,
    "check_video": ORDER,
    "is_bounded_box": ORDER,
    "random_state": ORDER,
    "set_random_state": ORDER,
    "flat_bounds": ORDER,
    "evaluate": ORDER,
    "Run": ORDER,
    "stored_args": ORDER,
    "parse_args": ORDER,
    # networks
    "RunningNorm": ON_POLICY,
    "DiagonalGaussian": ON_POLICY,
    # the algorithm
    "play_episode": EPISODIC,
    "play": ["a2c", "a3c", "trpo", "ppo"],
    # equations
    "td_errors": ["a2c", "a3c", "trpo", "ppo"],
    "gae": ["trpo", "ppo"],
    "value_loss": ["reinforce_baseline", "trpo"],
    "explained_variance": WITH_V,
    "policy_gradient_loss": ["reinforce", "reinforce_baseline", "a2c", "a3c"],
    "discounted_returns": EPISODIC,
    "n_step_advantages": ["a2c", "a3c"],
    "actor_critic_loss": ["a2c", "a3c"],
    # several processes
    "average_gradients": ["a2c", "ppo"],
    "several": ["a2c", "ppo"],
    "join_processes": ["a2c", "ppo"],
    "of_all": ["a2c", "ppo"],
    "of_all_objects": ["a2c", "ppo"],
    "start_alike": ["a2c", "ppo"],
    "count_all": ["a2c", "ppo"],
    "Follower": ["a2c", "ppo"],
    # off-policy
    "ReplayBuffer": OFF_POLICY,
    "polyak_update": OFF_POLICY,
    "q_loss": OFF_POLICY,
    "deterministic_policy_loss": ["ddpg", "td3"],
}
# The same name stands for one thing in the on-policy scripts, for another in the off-policy ones.
SHARED_APART = {
    "mlp": (ON_POLICY, OFF_POLICY),
    "Critic": (WITH_V, OFF_POLICY),
    "Actor": (ON_POLICY, ["ddpg", "td3"]),
}

RULERS = ["Arguments", "Networks", "Equations", "Replay buffer", "Algorithm"]
RULERS += ["Several processes: the same text in a2c.py and ppo.py"]
RULERS += ["Compiling: the same text in every script with --compile"]
RULERS += ["Plumbing: the same text in every script"]
LABEL = re.compile(r"\[((?:AC|CS|L3|L10|P7|X)-[\w./]+)\]")
CLEANRL_FLAGS = {
    "ppo": "seed torch_deterministic cuda track wandb_project_name wandb_entity capture_video env_id "
    "total_timesteps learning_rate num_envs num_steps anneal_lr gamma gae_lambda num_minibatches "
    "update_epochs norm_adv clip_coef clip_vloss ent_coef vf_coef max_grad_norm target_kl",
    "ddpg": "seed torch_deterministic cuda track wandb_project_name wandb_entity capture_video env_id "
    "total_timesteps learning_rate buffer_size gamma tau batch_size exploration_noise learning_starts",
    "td3": "seed torch_deterministic cuda track wandb_project_name wandb_entity capture_video env_id "
    "total_timesteps learning_rate buffer_size gamma tau batch_size exploration_noise learning_starts "
    "policy_noise policy_frequency noise_clip",
    "sac": "seed torch_deterministic cuda track wandb_project_name wandb_entity capture_video env_id "
    "total_timesteps buffer_size gamma tau batch_size learning_starts policy_lr q_lr policy_frequency "
    "alpha autotune",
}


def source(script: str) -> str:
    return (ROOT / f"{script}.py").read_text()


def definitions(script: str) -> dict[str, str]:
    """The text of each top-level function and class, decorators included."""
    text, found = source(script), {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return found


def common_args(script: str) -> str:
    """The fields of Args before the line '# Algorithm', without the two defaults that may differ."""
    common = definitions(script)["Args"].split("    # Algorithm\n")[0]
    return re.sub(r"(env_id: str|total_timesteps: int) = \S+", r"\1", common)


def comments(script: str) -> list[tuple[int, str]]:
    """(line, text) of each comment."""
    lines = iter(source(script).splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def assert_same(name: str, texts: dict[str, str]) -> None:
    (first, expected), *others = texts.items()
    for other, text in others:
        diff = difflib.unified_diff(
            expected.splitlines(), text.splitlines(), f"{first}.py", f"{other}.py", lineterm=""
        )
        assert text == expected, f"{name} differs:\n" + "\n".join(diff)


# ── Shared text ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SHARED)
def test_shared_definitions(name):
    scripts = [script for script in SCRIPTS if script in SHARED[name]]
    found = {script: definitions(script).get(name) for script in scripts}
    missing = [script for script, text in found.items() if text is None]
    assert not missing, f"{name} is missing in {missing}"
    if found:
        assert_same(name, found)


@pytest.mark.parametrize("name, scripts", [(n, s) for n in SHARED_APART for s in SHARED_APART[n]])
def test_shared_definitions_of_a_family(name, scripts):
    scripts = [script for script in scripts if script in SCRIPTS]
    assert_same(name, {script: definitions(script)[name] for script in scripts})


def test_no_other_repetition_goes_unwatched():
    """A definition that stands in several scripts is in the table, or its name is one that differs."""
    differ = {"Args", "train", "td_target"}
    names = [name for script in SCRIPTS for name in definitions(script)]
    repeated = {name for name in names if names.count(name) > 1} - differ
    assert repeated <= SHARED.keys() | SHARED_APART.keys()


def test_shared_arguments():
    assert_same("the common part of Args", {script: common_args(script) for script in SCRIPTS})


def test_a_difference_is_found():
    """The comparison above is able to fail."""
    with pytest.raises(AssertionError, match="-    return 1\n.*\\+    return 2"):
        assert_same("f", {"a": "def f():\n    return 1", "b": "def f():\n    return 2"})


# ── Each script for itself ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", SCRIPTS)
def test_stands_alone(script, tmp_path):
    """Copied into an empty folder, it runs there, with nothing of this project in reach."""
    shutil.copy(ROOT / f"{script}.py", tmp_path)
    variables = environment()
    del variables["PYTHONPATH"]
    env_id = "CartPole-v1" if script in ON_POLICY else "Pendulum-v1"
    command = [sys.executable, f"{script}.py", "--env-id", env_id, *flags(TINY[script])]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob(f"runs/{env_id}__{script}__1__*/checkpoint.pt"))) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_imports_nothing_of_this_project(script):
    allowed = {"gymnasium", "numpy", "torch", "tyro", "tqdm", "wandb", "moviepy"}
    for node in ast.walk(ast.parse(source(script))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            package = name.split(".")[0]
            assert package in allowed or package in sys.stdlib_module_names, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_order_of_the_file(script):
    rulers = re.findall(r"^# ── (.+?) ─+$", source(script), re.M)
    assert rulers == [ruler for ruler in RULERS if ruler in rulers]
    assert {"Arguments", "Networks", "Algorithm", RULERS[-1]} <= set(rulers)


def test_plumbing_is_the_same_text():
    """All that stands below the last ruler, between the definitions too."""
    texts = {source(script).split(f"# ── {RULERS[-1]} ")[1] for script in SCRIPTS}
    assert len(texts) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_layout(script):
    text = source(script)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.split('"""')[1].count("\n") <= 60
    bodies = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    statements = bodies["train"].body  # the docstring is statement 0
    lines = statements[-1].end_lineno - statements[1].lineno + 1
    assert lines <= {"td3": 105, "sac": 120}.get(script, 100)  # two critics; three losses


@pytest.mark.parametrize("script", SCRIPTS)
def test_header_states_what_the_functions_implement(script):
    """The first docstring line of an equation function is the header's line with that label."""
    module = importlib.import_module(script)
    header = dict(re.findall(r"^ +\[([\w.-]+)\] +(.+?)(?:   .*)?$", module.__doc__, re.M))
    functions = [
        function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == script and LABEL.search((function.__doc__ or "").split("\n")[0])
    ]
    assert functions
    for function in functions:
        first_line = function.__doc__.split("\n")[0]
        label = LABEL.search(first_line)[1]
        equation = LABEL.sub("", first_line).strip()
        assert equation == header[label], f"{script}.{function.__name__}"
        body = inspect.getsource(function).split('"""')[2]
        assert f"# [{label}]" in body, f"no line of {script}.{function.__name__} carries {label}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_steps_of_the_algorithm(script):
    """The header's numbers 1..n stand as comments in train, in that order."""
    header = source(script).split('"""')[1]
    box = header[header.index("\nAlgorithm") :].split("\n\n")[0]
    numbers = [int(number) for number in re.findall(r"^ +(\d+)\.", box, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    train = definitions(script)["train"]
    if script == "a3c":  # whose workers do all but the first step
        train += definitions(script)["work"]
    assert [int(number) for number in re.findall(r"^ +# (\d+)\. ", train, re.M)] == numbers


# ── Labels ────────────────────────────────────────────────────────────────────────────────────────


def readme_table() -> dict[str, tuple[list[str], list[str]]]:
    """label → scripts whose code carries it, scripts that tell it, from the README's table."""
    rows = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and LABEL.match(f"[{cells[0].split(' ')[0]}]"):
            code, told = ([name for name in re.findall(r"\w+", cell)] for cell in cells[3:5])
            rows[cells[0].split(" ")[0]] = code, told
    return rows


def synonyms() -> set[str]:
    """The labels that stand in brackets behind another one."""
    found = set()
    for line in (ROOT / "README.md").read_text().splitlines():
        match = re.match(r"\| *[\w./-]+ \(([^)]*)\) *\|", line)
        found |= set(re.split(r", *", match[1])) if match else set()
    return found


def test_readme_table_is_read():
    rows = readme_table()
    assert len(rows) > 50 and rows["AC-09b"][0] == ["ppo"] and "AC-08b" in rows


@pytest.mark.parametrize("script", SCRIPTS)
def test_labels_of_the_script_are_in_the_readme(script):
    assert set(LABEL.findall(source(script))) <= readme_table().keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_labels_that_the_readme_requires(script):
    """In the column 'code': at the end of a code line. In 'told': anywhere in the script."""
    lines = source(script).splitlines()
    on_code = set()
    for number, comment in comments(script):
        if not lines[number - 1].lstrip().startswith("#"):
            on_code |= set(LABEL.findall(comment))
    for label, (code, told) in readme_table().items():
        if script in code:
            assert label in on_code, f"no code line of {script}.py carries [{label}]"
        if script in told or "all" in told:
            assert f"[{label}]" in source(script), f"{script}.py does not tell [{label}]"


@pytest.mark.parametrize("script", SCRIPTS)
def test_code_labels_stand_in_the_readme_row(script):
    """The other direction: a label on a line of code is one that the README lists for the script."""
    rows, lines = readme_table(), source(script).splitlines()
    for number, comment in comments(script):
        for label in LABEL.findall(comment):
            if not lines[number - 1].lstrip().startswith("#"):
                code, told = rows[label]
                assert script in code + told or "all" in told, f"{script}.py:{number} [{label}]"


# ── Public names ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in CLEANRL_FLAGS])
def test_cleanrl_flags(script):
    fields = set(inspect.signature(importlib.import_module(script).Args).parameters)
    assert set(CLEANRL_FLAGS[script].split()) <= fields


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_argument_is_explained(script):
    """One line a field, and each has its comment, which becomes the text of --help."""
    fields = [
        line for line in definitions(script)["Args"].splitlines() if re.match(r"    \w+:", line)
    ]
    module = importlib.import_module(script)
    assert len(fields) == len(inspect.signature(module.Args).parameters)
    for line in fields:
        assert re.search(r"  # \S", line), line


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in ON_POLICY])
def test_public_names_of_stochastic_actors(script):
    import gymnasium as gym

    module = importlib.import_module(script)
    space = gym.spaces.Box(-1, 1, (3,))
    for actions in (gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))):
        actor, obs = module.Actor(space, actions), torch.zeros(5, 3)
        dist = actor(obs)
        assert isinstance(dist, torch.distributions.Distribution)
        assert dist.log_prob(dist.sample()).shape == dist.entropy().shape == (5,)
        assert actor.mode(obs).shape == (5, *actions.shape)
        assert all(actions.contains(action) for action in actor.mode(obs).numpy())


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script in OFF_POLICY])
def test_public_names_of_off_policy_scripts(script):
    import gymnasium as gym

    module = importlib.import_module(script)
    space = gym.spaces.Box(-1, 1, (3,))
    actions = gym.spaces.Box(-2, 2, (2,))
    actor, obs = module.Actor(space, actions), torch.zeros(5, 3)
    assert actor.mode(obs).shape == (5, 2)
    assert all(actions.contains(action) for action in actor.mode(obs).numpy())
    if script == "sac":
        action, log_prob = actor.sample(obs)
        assert action.shape == (5, 2) and log_prob.shape == (5,)
    else:
        assert actor(obs).shape == (5, 2)
