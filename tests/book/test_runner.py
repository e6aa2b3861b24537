"""The runner, on a book of three small pages: run, fail, resume, redraw, and run as jobs."""

import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import slurm_here

from conftest import ROOT
from peaks_and_gates import cache, models, record
from peaks_and_gates.book import jobs, keys, presets, runner, site
from peaks_and_gates.errors import BadParameter

PAGE = """
import os
import pandas as pd
from peaks_and_gates import errors, recorded

@recorded
def numbers(seed):
    assert not os.environ.get("PG_REDRAW")
    {trouble}
    return pd.DataFrame({{"condition": ["a", "b"], "layer": [0, 1], "value": [seed + 0.5, 2.0], "n": [3, 4]}})

table = numbers(seed)
"""
TROUBLE = {"first": "", "broken": "raise errors.BadQuestions('There are no questions.')", "last": "print('measured')"}
PAGES = ("notebooks/landscape/first", "notebooks/landscape/broken", "notebooks/gate/last")
TOC = "\n".join(f"  - file: {name}" for name in ("book/prose", *PAGES))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A book of three pages, one of which fails."""
    for name, trouble in zip(PAGES, TROUBLE.values(), strict=True):
        write_page(tmp_path / f"{name}.ipynb", trouble)
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "requirements-dev.lock").write_text("")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.yml").write_text("[]")
    monkeypatch.setattr(cache, "project_folder", lambda: tmp_path)
    monkeypatch.setenv("PG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_page(path, trouble):
    parameters = "preset = 'laptop'\nseed = 0  # of what is drawn at random\nnative: list = []"
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(PAGE.format(trouble=trouble))]
    cells += [nbformat.v4.new_code_cell("table.round(1)", metadata={"tags": ["figure", "hide-input"]})]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def states(**changes):
    return {job.name: job.state for job in runner.plan("smoke", changes=changes)}


def test_pages_come_from_the_table_of_contents_and_names_are_checked(checkout):
    assert list(runner.notebooks()) == ["first", "broken", "last"]
    with pytest.raises(BadParameter, match=r"None of first.*'recipe'"):
        runner.plan("smoke", [], {"recipe": "released"})
    cell = nbformat.v4.new_code_cell("seed = __import__('os').system('touch out')", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), checkout / "notebooks/gate/last.ipynb")
    with pytest.raises(BadParameter, match="plain values"):  # it is read, and not run
        runner.plan("smoke")
    assert not list(checkout.rglob("out"))


def test_a_failing_page_stops_no_other_and_finished_pages_stay(checkout, capsys):
    assert set(states().values()) == {"missing"}
    assert jobs.run(runner.plan("smoke")) == ["broken: There are no questions."]
    output = capsys.readouterr().out
    assert "[2/3] broken (smoke): running" in output and "Claims: 0 holds, 0 mixed" in output
    assert states() == {"first": "done", "broken": "missing", "last": "done"}
    job = runner.plan("smoke", ["first"])[0]
    about = job.manifest
    assert about["key"] == job.key and about["parameters"]["seed"] == 0 and about["dtype"] == "float32"
    assert about["environment"]["packages"]["torch"]
    assert (job.record.parent / "scorecard.json").read_text().strip() == "[]"

    assert len(jobs.run(runner.plan("smoke"))) == 1  # the broken one again, and no other
    assert runner.plan("smoke", ["first"])[0].manifest == about
    for trouble, expected in (("1 / 0", "cell 3: ZeroDivisionError: "), ("os.kill(os.getpid(), 9)", "Kernel")):
        write_page(job.source, trouble)
        assert states()["first"] == "stale"
        (message,) = jobs.run(runner.plan("smoke", ["first"]))
        assert expected in message
        assert runner.plan("smoke", ["first"])[0].manifest == about  # the old record stays until a run has finished
    job.record.with_suffix(".json").write_text("[]")
    assert states()["first"] == "stale"
    assert set(states(seed=1).values()) == {"missing"}  # beside the record


def test_a_record_made_elsewhere_redraws_the_page_and_runs_again_when_asked(checkout):
    (job,) = runner.plan("smoke", ["first"])
    assert jobs.run([job]) == [] and job.is_drawn
    outputs = json.loads(job.output.read_text())["cells"][-1]["outputs"]
    job.marker.unlink()
    job.output.unlink()
    assert (job.state, job.is_drawn) == ("recorded", False)
    site.draw([job])  # the page refuses to compute when it is redrawn
    assert job.is_drawn and json.loads(job.output.read_text())["cells"][-1]["outputs"] == outputs
    (checkout / "book/claims.yml").write_text("[] # others")
    assert not job.is_drawn
    job.output.write_text("[]")
    assert not job.is_drawn
    assert "PG_PAGE" not in os.environ
    assert jobs.run([job]) == [] and job.state == "done"


def test_a_page_without_a_model_is_left_out_until_it_is_given_one(checkout, capsys):
    assert jobs.run(runner.plan("paper", ["last"], {"native": []})) == []
    assert "no vision-language model (name one with --model): last." in capsys.readouterr().out
    for name, role in {"chameleon-7b": "native", "llava-1.5-7b": "adapted", "janus-pro-1b": "adapted"}.items():
        assert runner.model_parameters(name) == {"native": [], "adapted": [], "controls": []} | {role: [name]}
    assert runner.model_parameters("llama-3-8b") == {"model": "llama-3-8b"}


def test_a_page_says_the_precision_that_its_models_run_in(monkeypatch):
    page = {"native": ["mini-native-0"], "adapted": ["mini-adapted-0", "mini-native-0"], "model": None, "dtype": None}
    assert runner.models_of(page) == ["mini-native-0", "mini-adapted-0"]
    others = ({"model": "llama-3-8b"}, {"native": ["chameleon-7b", "mini-native-0"]}, {})
    for gain, expected in ((1.4, "float32"), (1.6, "bfloat16")):  # on either side of what is worth the rounding
        monkeypatch.setattr(models, "gain_of_bfloat16", lambda gain=gain: gain)
        assert {runner.precision(model) for model in others} == {expected}
        assert runner.precision(page) == "float32" and runner.precision(page | {"dtype": "bfloat16"}) == "bfloat16"


def test_a_profile_is_put_over_the_resources_and_bad_ones_are_one_message(checkout, tmp_path):
    profile = tmp_path / "profile.yml"
    profile.write_text("slurm_partition: gpu\nmem_gb: 99\n")
    settings = jobs.resources("smoke", str(profile))
    assert settings == jobs.resources("smoke", None) | {"slurm_partition": "gpu", "mem_gb": 99}
    (job,) = runner.plan("smoke", ["first"])
    with pytest.raises(BadParameter, match="--executor slurm"):
        jobs.run([job], profile=str(profile))
    for text in ("", "[gpu]", "gpu", None):
        profile.write_text(text) if text is not None else (profile.unlink(), profile.mkdir())
        with pytest.raises(BadParameter, match=f"The profile {profile}"):
            jobs.resources("smoke", str(profile))
    with pytest.raises(BadParameter, match=r"not taken.*memory_gb"):
        jobs.submit(job, "local", {"memory_gb": 3}, False)


def test_a_job_that_died_says_its_last_line(tmp_path):
    paths = SimpleNamespace(result_pickle=tmp_path / "result.pkl", stderr=tmp_path / "log.err")
    paths.stderr.write_text("one\nKilled\n")
    handle = SimpleNamespace(job_id="7", paths=paths, exception=lambda: RuntimeError("trace\nValueError: no room"))
    assert "job 7 died without a result" in jobs.outcome(handle) and "Killed" in jobs.outcome(handle)
    paths.result_pickle.write_text("")
    assert jobs.outcome(handle) == f"ValueError: no room See {paths.stderr}"


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_jobs_leave_the_same_record_and_failures(checkout, monkeypatch, executor):
    # A job imports the package anew, so it learns where the book is from a module that is imported first.
    (checkout / "sitecustomize.py").write_text(
        "from pathlib import Path\nfrom peaks_and_gates import cache\n"
        f"cache.project_folder = lambda: Path({str(checkout)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(checkout), str(cache.SOURCE.parent)]))
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, ExitStack() as stack:
        if executor == "slurm":
            environment = stack.enter_context(slurm_here.slurm(Path(folder)))
            monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
            monkeypatch.setenv("PATH", environment["PATH"])
        failures = jobs.run(runner.plan("smoke"), executor=executor)
    assert failures == ["broken: There are no questions."]
    assert states() == {"first": "done", "broken": "missing", "last": "done"}
    expected = pd.DataFrame({"condition": ["a", "b"], "layer": [0, 1], "value": [0.5, 2.0], "n": [3, 4]})
    for path in record.pages(checkout / "_build/results/smoke"):
        pd.testing.assert_frame_equal(record.read(path)["numbers"], expected)


def test_the_books_own_pages_can_be_planned_at_every_size():
    for preset in presets.NAMES:
        pages = runner.plan(preset)
        assert len(pages) > 25 and len({job.key for job in pages}) == len(pages) and keys.root() == ROOT


def test_a_relative_cache_is_where_the_run_was_called(checkout, monkeypatch):
    folders = []
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **how: folders.append(os.environ["PG_CACHE"]))
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PG_CACHE", "stored")
    runner.perform(runner.plan("smoke", ["first"])[0])  # the page's own folder is another
    assert folders == [str(checkout / "stored")] and os.environ["PG_CACHE"] == "stored"
