"""Every coding exercise: its solution passes all its checks, its student's version none that asks for one."""

import json

import nbformat
import pytest

from peaks_and_gates import exercises
from peaks_and_gates.cli import main
from peaks_and_gates.errors import BadParameter, MissingFile, UnknownName

NAMES = exercises.names()


def test_there_are_enough_and_of_all_levels():
    texts = {name: exercises.source(name).cells[0].source for name in NAMES}
    assert len(NAMES) >= 8
    levels = [text.split("**Level** ")[1].split(" of three")[0] for text in texts.values()]
    assert set(levels) == {"one", "two", "three"}
    for text in texts.values():
        assert "**You will be able to**" in text and "**Time** " in text and "**Before this** " in text


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_every_check(name, tmp_path):
    (path,) = exercises.write(tmp_path, [name], solutions=True)
    assert "SOLUTION" not in path.read_text()
    failed = [(each.says, each.failed) for each in exercises.check(path) if each.failed]
    assert failed == []


@pytest.mark.parametrize("name", NAMES)
def test_the_students_version_fails_and_says_why(name, tmp_path):
    (path,) = exercises.write(tmp_path, [name])
    text = path.read_text()
    assert "SOLUTION" not in text and text.count("not written yet") == json.dumps(dict(exercises.source(name))).count(
        "BEGIN SOLUTION"
    )
    found = exercises.check(path.with_suffix(""))
    assert all(each.failed for each in found), [each.says for each in found if not each.failed]
    assert all("not written yet" in each.failed or "not defined" in each.failed for each in found)


def test_what_a_learner_wrote_is_never_overwritten(tmp_path):
    (path,) = exercises.write(tmp_path, ["lora"])
    path.write_text("mine")
    assert exercises.write(tmp_path, ["lora"]) == [] and path.read_text() == "mine"


def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["exercises", "rand-index", "--to", str(tmp_path)])
    assert ended.value.code == 0
    path = tmp_path / "rand-index.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # a plausible mistake: the index without the adjustment
        cell.source = cell.source.replace(
            'raise NotImplementedError("not written yet")',
            "same = lambda x: x[:, None] == x\n    return float((same(labels) == same(groups)).mean())",
        )
    nbformat.write(notebook, path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "rand-index")])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "ok      The same grouping under other names has index 1" in said
    assert "is the expected number of pairs taken away?" in said
    assert "1 of 4 checks hold." in said


def test_bad_input(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'rand-index'"):
        exercises.write(tmp_path, ["rand-indx"])
    with pytest.raises(MissingFile, match="pg exercises"):
        exercises.check(tmp_path / "nothing")
    (tmp_path / "broken.ipynb").write_text("no notebook")
    with pytest.raises(BadParameter, match="is no notebook"):
        exercises.check(tmp_path / "broken")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "empty.ipynb")
    with pytest.raises(BadParameter, match="no cells tagged"):
        exercises.check(tmp_path / "empty")


def test_a_solution_belongs_into_an_exercise():
    cell = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["exercise"]})
    with pytest.raises(BadParameter, match="has one solution"):
        exercises.student(nbformat.v4.new_notebook(cells=[cell]))
    cell = nbformat.v4.new_code_cell("# BEGIN SOLUTION\nx = 1\n# END SOLUTION")
    with pytest.raises(BadParameter, match="has one solution"):
        exercises.student(nbformat.v4.new_notebook(cells=[cell]))
