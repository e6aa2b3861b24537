"""The `pg` command: four verbs, one message for bad input, and nothing heavy loaded before it is needed."""

import subprocess
import sys

import pytest

from peaks_and_gates.book import cli, runner

HEAVY = ("torch", "matplotlib", "transformers", "papermill", "sklearn", "scipy")


def call(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--preset", "labtop"], "Did you mean 'laptop'"),
        (["run", "--only", "subject"], "Did you mean 'subjects'"),
        (["run", "-p", "n_order=1"], "Did you mean 'n_orders'"),
        (["run", "-p", "n_orders=many"], "n_orders"),
        (["run", "-p", "n_orders"], "key=value"),
        (["status", "--preset", "huge"], "Known: colab"),
        (["compare", "results/laptop", "nowhere"], "does not exist"),
    ],
)
def test_bad_input_is_answered_with_one_message(arguments, message, capsys):
    code, output = call(arguments, capsys)
    assert code != 0
    assert message in output.err
    assert "Traceback" not in output.err


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--preset", "smoke"]])
def test_nothing_heavy_is_loaded(arguments):
    code = (
        "import sys\nfrom peaks_and_gates.book import cli\n"
        f"try:\n    cli.main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_status_names_every_page(capsys):
    code, output = call(["status", "--preset", "smoke"], capsys)
    assert code == 0
    assert [line.split()[1] for line in output.out.splitlines()] == list(runner.notebooks())


def test_a_record_is_the_same_as_itself(capsys):
    folder = str(runner.root() / "results" / "laptop")
    code, output = call(["compare", folder, folder], capsys)
    assert (code, output.out) == (0, "The same tables, numbers and verdicts.\n")
