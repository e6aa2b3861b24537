"""The `pg` command: presets and parameters, one message for bad input, and nothing heavy loaded before it is needed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from peaks_and_gates.book import cli, jobs, presets, runner
from peaks_and_gates.errors import BadParameter, UnknownName

HEAVY = ("torch", "matplotlib", "transformers", "papermill", "sklearn", "scipy")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--preset", "labtop"], 2, "Did you mean 'laptop'"),
        (["run", "--only", "subject"], 2, "Did you mean 'subjects'"),
        (["run", "--profile", "nowhere.yml"], 2, "does not exist"),
        (["run", "--model", "smollm"], 2, "There is no model or folder 'smollm'"),
        (["compare", *[str(runner.root() / "src")] * 2], 2, "Neither"),
        (["compare", *[str(runner.root() / "results" / "laptop")] * 2], 0, "The same tables, numbers and verdicts."),
    ],
)
def test_the_answer_is_one_message(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    output = capsys.readouterr()
    assert stop.value.code == code and message in (output.err or output.out)


@pytest.fixture
def own_signals():
    """What SIGTERM does to the tests comes back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_run_that_is_stopped_from_outside_ends_its_jobs(monkeypatch, own_signals):
    ended = []

    def stopped(*_, **settings):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)
        finally:
            ended.append("jobs")

    monkeypatch.setattr(jobs, "run", stopped)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(SystemExit, match="stopped"):
        cli.main(["run", "--preset", "smoke"])
    assert ended == ["jobs"]


def test_half_an_installation_is_one_message(monkeypatch, capsys, own_signals):
    monkeypatch.setattr(cli, "require_packages", lambda: __import__("no_such_module"))
    with pytest.raises(SystemExit):
        cli.main(["run", "--preset", "smoke"])
    assert capsys.readouterr().err == "pg: No module named 'no_such_module'\n"


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--preset", "smoke"]])
def test_nothing_heavy_is_loaded_and_status_names_every_page(arguments):
    code = (
        "import sys\nfrom peaks_and_gates.book import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    if "status" in arguments:
        assert [line.split()[1] for line in output.splitlines()[:-1]] == list(runner.notebooks())


@pytest.mark.parametrize("name", presets.NAMES)
def test_presets_have_the_same_parameters_each_once_and_each_used(name):
    laptop, text = presets.load("laptop"), (presets.FOLDER / f"{name}.yml").read_text()
    assert presets.override(laptop, presets.load(name)).keys() == laptop.keys()
    keys = [key.value for key, _ in yaml.compose(text).value]  # YAML takes the last of two equal keys without a word
    declared = {name for page in runner.notebooks().values() for name in runner.declared(page)}
    assert len(keys) == len(set(keys)) and set(keys) == declared - {"preset"} | {"resources"}


ASSIGNMENTS = {
    "n_orders=1": 1,
    "n_orders=null": None,
    "n_orders=paper": "paper",
    "shots=[0, 5]": [0, 5],
    "model=a/b": "a/b",
    "strengths=[1]": [1],
}


@pytest.mark.parametrize(("text", "value"), ASSIGNMENTS.items())
def test_assignments_are_read_and_fit(text, value):
    name, read = presets.parse_assignment(text)
    assert (name, read) == (text.partition("=")[0], value)
    assert presets.override(presets.load("laptop"), {name: value})[name] == value


@pytest.mark.parametrize("value", [8, None])
def test_a_number_may_take_the_place_of_the_papers_orders(value):
    assert presets.override(presets.load("paper"), {"n_orders": value})["n_orders"] == value
    for name, text in (("n_orders", "8"), ("n_subjects", "paper"), ("source", 8)):
        with pytest.raises(BadParameter, match=name):
            presets.override(presets.load("paper"), {name: text})


@pytest.mark.parametrize("text", ["n_order=1", "n_orders=x", "shots=5", "shots=[five]", "seed=true", "model=3", "=3"])
def test_a_parameter_that_does_not_fit_is_refused_by_name(text):
    with pytest.raises((BadParameter, UnknownName), match=text.partition("=")[0] or text):
        presets.override(presets.load("laptop"), dict([presets.parse_assignment(text)]))
