"""The text of the scripts: what is the same in several of them, labels, sizes, and that each stands
alone."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tokenize

import pytest
from conftest import EPISODIC, LANGUAGE, OFF_POLICY, ON_POLICY, ROOT, SCRIPTS

FILES = SCRIPTS + LANGUAGE

# Lines at most, with header, comments and blank lines.
LINES = dict(
    reinforce=415, reinforce_baseline=465, a2c=515, a3c=512, trpo=570, ppo=550,
    ddpg=460, td3=475, sac=500, rlhf=591, grpo=572,
)  # fmt: skip
LINES_OF_TRAIN, LINES_OF_HEADER, LINES_OF_PLUMBING = 110, 50, 147

# `git diff --numstat` without the headers: lines removed and added at most.
DIFFERENCES = {
    ("reinforce", "reinforce_baseline"): (9, 57),
    ("reinforce_baseline", "a2c"): (94, 147),
    ("a2c", "a3c"): (82, 85),
    ("a2c", "trpo"): (106, 160),
    ("a2c", "ppo"): (94, 133),
    ("ddpg", "td3"): (29, 42),
    ("td3", "sac"): (57, 78),
    ("rlhf", "grpo"): (51, 32),
}

# Top-level definitions that are the same to the letter in these scripts; the others lack them.
WITH_V, ROLLOUTS = ON_POLICY[1:], ["a2c", "a3c", "trpo", "ppo"]
SAME = {
    "policy_gradient_loss": ["reinforce", "reinforce_baseline", "a2c", "a3c"],
    "discounted_returns": EPISODIC,
    "play_episode": EPISODIC,
    "n_step_advantages": ["a2c", "a3c"],
    "actor_critic_loss": ["a2c", "a3c"],
    "gae": ["trpo", "ppo", "rlhf"],
    "clipped_surrogate": ["ppo", *LANGUAGE],
    "compiled": ["ppo", *OFF_POLICY],
    "ReplayBuffer": OFF_POLICY,
    "polyak_update": OFF_POLICY,
    "deterministic_policy_loss": ["ddpg", "td3"],
}
# All of the language, of the reward model and of what is measured.
NAMES = """judge writers generate response_mask decode judge_scores Transformer RewardModel
token_log_probs sft_loss bradley_terry_loss best_objective train_supervised Stages collect agreement
measure show"""
SAME |= {name: LANGUAGE for name in NAMES.split()}
# The same name stands for one thing in the on-policy scripts and for another in the others. In a2c
# the statistics are those of all processes; ppo's Adam clips the gradient.
SAME_IN_A_FAMILY = {
    "RunningNorm": [[x for x in ON_POLICY if x != "a2c"]],
    "mlp": [ON_POLICY, OFF_POLICY],
    "Adam": [OFF_POLICY],
    "rollout": [ROLLOUTS, LANGUAGE],
    "evaluate": [SCRIPTS, LANGUAGE],
    "Actor": [ON_POLICY, ["ddpg", "td3"]],
    "Critic": [WITH_V, OFF_POLICY],
}
DIFFERENT = {"Args", "train", "update", "td_target", "ppo_objective"}

RULERS = [
    "Arguments",
    "Language",
    "Networks",
    "Equations",
    "Several processes",
    "Replay buffer",
    "Algorithm",
]
PLUMBING = [
    "Plumbing: the same text in every script",
    "Plumbing: the same text in rlhf.py and grpo.py",
]
RULERS += PLUMBING
TRAPS = {  # the sentence, and words by which another wording of it would be found
    "V(s') = 0 only if terminated; a time limit still bootstraps.": r"# .*only if terminated",
    "The target is a constant: no gradient flows through it.": r"# .*target is a constant",
    "Ascent on the objective = descent on its negative.": r"# .*[Aa]scent",
    "Sum log-probabilities over action dimensions: (B, A) → (B,).": r"# .*[Ss]um log",
    "next_obs is the true successor, even when the env has just been reset.": r"# .*true successor",
}
LABEL = re.compile(r"\[((?:AC|CS|L3|L10|P7|X)-[\w./]+)\]")


def source(script: str) -> str:
    return (ROOT / f"{script}.py").read_text()


def without_header(script: str) -> str:
    return source(script).split('"""', 2)[2]


def plumbing(script: str) -> str:
    return re.split("# ── Plumbing: .*─\n", source(script))[1]


def definitions(script: str) -> dict[str, str]:
    """The text of each top-level function and class, decorators included."""
    lines, found = source(script).splitlines(), {}
    for node in ast.parse(source(script)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


def comments_on_code(script: str) -> str:
    """The comments at the ends of lines of code."""
    lines = iter(source(script).splitlines(keepends=True))
    tokens = tokenize.generate_tokens(lambda: next(lines, ""))
    return "\n".join(
        token.string
        for token in tokens
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    )


# ── The same text ─────────────────────────────────────────────────────────────────────────────────


def assert_same(name: str, scripts: list[str]) -> None:
    texts = {script: definitions(script)[name] for script in scripts}
    first = texts[scripts[0]]
    assert {script: first for script in scripts} == texts


@pytest.mark.parametrize("name", SAME)
def test_same_definitions(name):
    assert [script for script in FILES if name in definitions(script)] == SAME[name]
    assert_same(name, SAME[name])


@pytest.mark.parametrize("name, scripts", [(n, s) for n, x in SAME_IN_A_FAMILY.items() for s in x])
def test_same_definitions_in_a_family(name, scripts):
    assert_same(name, scripts)


def test_statistics_of_a2c():
    """Its RunningNorm is the others', with the two means over all processes."""
    text = definitions("a2c")["RunningNorm"]
    assert text.count("all_mean(") == 2
    text = re.sub(r"= all_mean\((.+)\)$", r"= \1", text, flags=re.M)
    assert text == definitions("ppo")["RunningNorm"]


def test_same_plumbing():
    """All that stands below the last ruler, between the definitions too."""
    texts = {script: plumbing(script) for script in SCRIPTS}
    assert {script: texts["ppo"] for script in SCRIPTS} == texts
    assert len(texts["ppo"].splitlines()) <= LINES_OF_PLUMBING


def test_plumbing_of_language_models():
    """rlhf.py and grpo.py have the same, and most of it is that of the others."""
    texts = [plumbing(script).replace("total_responses", "total_timesteps") for script in LANGUAGE]
    assert texts[0] == texts[1]
    others = set(plumbing("ppo").splitlines())
    assert len([line for line in texts[0].splitlines() if line not in others]) <= 24


def test_no_other_repetition_goes_unwatched():
    """What stands in several scripts is in a table above, or is plumbing."""
    names = [name for script in FILES for name in definitions(script)]
    repeated = {name for name in names if names.count(name) > 1}
    defined = set(re.findall(r"^(?:def|class) (\w+)", plumbing("ppo"), re.M))
    assert repeated <= SAME.keys() | SAME_IN_A_FAMILY.keys() | DIFFERENT | defined


def test_same_arguments():
    """The same name has the same type, and below "# Run" the same comment."""
    lines = {}
    for script in FILES:
        run = definitions(script)["Args"].split("    # Run\n")[1]
        for line in run.splitlines():
            lines.setdefault(line.split(":")[0], set()).add(line)
        assert line.strip().startswith("resume")
    assert all(len(texts) == 1 for texts in lines.values()), lines
    for script in SCRIPTS:  # each has its comment, which becomes the text of --help
        fields = re.findall(r"^    \w+: .+$", definitions(script)["Args"], re.M)
        module = importlib.import_module(script)
        assert len(fields) == len(inspect.signature(module.Args).parameters)
        assert all(re.search(r"  # \S", line) for line in fields)
        assert re.findall(r"\w+", fields[0])[0] == "env_id"


@pytest.mark.parametrize("pair", DIFFERENCES, ids="-".join)
def test_neighbours_differ_by_their_idea(pair, tmp_path):
    for script in pair:
        (tmp_path / f"{script}.py").write_text(without_header(script))
    command = ["git", "diff", "--no-index", "--numstat", *(f"{script}.py" for script in pair)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    added, removed, _ = done.stdout.split(maxsplit=2)
    most_removed, most_added = DIFFERENCES[pair]
    assert int(removed) <= most_removed and int(added) <= most_added, done.stdout


# ── Each script for itself ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", FILES)
def test_sizes(script):
    text = source(script)
    assert len(text.splitlines()) <= LINES[script]
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.split('"""')[1].splitlines()) <= LINES_OF_HEADER
    assert len(definitions(script)["train"].splitlines()) <= LINES_OF_TRAIN


@pytest.mark.parametrize("script", FILES)
def test_order_of_the_file(script):
    rulers = re.findall(r"^# ── (.+?) ─+$", source(script), re.M)
    assert rulers == [ruler for ruler in RULERS if ruler in rulers]
    expected = {"Arguments", "Networks", "Equations", "Algorithm", PLUMBING[script in LANGUAGE]}
    expected |= {"Replay buffer"} if script in OFF_POLICY else set()
    expected |= {"Language"} if script in LANGUAGE else set()
    assert expected == set(rulers) - {"Several processes"}
    headings = "Idea Equations Algorithm Not Run".split()
    header = source(script).split('"""')[1]
    found = re.findall(rf"^({'|'.join(headings)})\b", header, re.M)
    assert found == headings


@pytest.mark.parametrize("script", FILES)
def test_imports_nothing_of_this_project(script):
    allowed = {"gymnasium", "numpy", "torch", "tyro", "tqdm", "wandb"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(source(script))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize("script", FILES)
def test_steps_of_the_algorithm(script):
    """The header's numbers 1, 2, ... stand as comments in the code, in that order."""
    header, parts = source(script).split('"""')[1], definitions(script)
    box = header[header.index("\nAlgorithm") :].split("\n\n")[0]
    numbers = [int(number) for number in re.findall(r"^ +(\d+)\. ", box, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and numbers
    code = "".join(parts.get(name, "") for name in ("train", "work", "update"))
    # One comment may cover two steps that one line of code does.
    assert [int(number) for number in re.findall(r"^ +# (\d+)\. ", code, re.M)] == numbers


@pytest.mark.parametrize("script", FILES)
def test_trap_sentences(script):
    """The same words wherever one of the five is said, in comments that may break the line."""
    text = re.sub(r"\n +# ", " ", source(script))
    for sentence, pattern in TRAPS.items():
        assert len(re.findall(pattern, source(script))) == text.count(sentence), sentence


def test_traps_are_said_where_they_apply():
    said = {sentence: [s for s in FILES if sentence in source(s)] for sentence in TRAPS}
    bootstrap, target, ascent, log_prob, successor = said.values()
    assert successor == ROLLOUTS + OFF_POLICY
    assert bootstrap == target == [*successor, "rlhf"]
    assert ascent == [script for script in FILES if script not in ("trpo", "sac")]
    assert log_prob == [*ON_POLICY, "sac"]


# ── Labels ────────────────────────────────────────────────────────────────────────────────────────


def equations_of(script: str) -> list[tuple[str, str, str]]:
    """label, equation and text of each definition whose docstring starts with a labelled equation."""
    found = []
    for name, text in definitions(script).items():
        node = ast.parse(text).body[0]
        match = re.match(r"(.+?)  \[([\w./-]+)\]", (ast.get_docstring(node) or "").split("\n")[0])
        if match and LABEL.match(f"[{match[2]}]"):
            found.append((match[2], match[1], text))
    return found


@pytest.mark.parametrize("script", FILES)
def test_equations_are_stated_as_in_the_header(script):
    """The first docstring line has the header's equation, and a line of code carries its label."""
    header = source(script).split('"""')[1]
    stated = dict(re.findall(r"^ +\[([\w./-]+)\] +(.+?)(?:   .*)?$", header, re.M))
    assert len(equations_of(script)) >= 2
    for label, equation, text in equations_of(script):
        assert equation == stated[label].removesuffix(", so that"), label
        assert re.search(rf"\S.*  # .*\[{re.escape(label)}\]", text.split('"""', 2)[2]), label


def equation_table() -> dict[str, tuple[list[str], list[str]]]:
    """label → scripts whose code carries it, scripts that tell it, from the table of equations.md."""
    rows = {}
    for line in (ROOT / "equations.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and LABEL.match(f"[{cells[0].split(' ')[0]}]"):
            code, told = (re.findall(r"\w+", cell) for cell in cells[3:])
            rows[cells[0].split(" ")[0]] = code, SCRIPTS if told == ["all"] else told
    return rows


def test_the_table_is_read():
    rows = equation_table()
    assert (
        len(rows) > 50 and rows["AC-09b"] == (["ppo", *LANGUAGE], []) and "ppo" in rows["CS-3a"][1]
    )
    assert all(set(code) | set(told) <= set(FILES) for code, told in rows.values())


@pytest.mark.parametrize("script", FILES)
def test_labels_of_the_script(script):
    """Each stands in the table. What the table says to be in the code is on a line of code, there
    and nowhere else, or beside the header's box; what it says to be told is anywhere."""
    rows, text, on_code = equation_table(), source(script), comments_on_code(script)
    assert set(LABEL.findall(text)) <= rows.keys()
    on_code += source(script).split('"""')[1].split("\nAlgorithm")[1].split("\n")[0]  # the box
    for label, (code, told) in rows.items():
        if script in code:
            assert f"[{label}]" in on_code, f"no line of code carries [{label}]"
        if script in told:
            assert f"[{label}]" in text, f"[{label}] is not told"
    for label in set(LABEL.findall(on_code)):
        assert script in rows[label][0] + rows[label][1], f"[{label}] is not in the table"
