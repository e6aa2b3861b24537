"""Where the book is not at home: an ordinary installation, Colab and its like, a public repository."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from http.client import IncompleteRead
from importlib.metadata import version
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from conftest import ROOT
from peaks_and_gates import cache
from peaks_and_gates.book import claims, cli, keys, presets, runner
from peaks_and_gates.errors import BookError, HashMismatch, MissingFile, StorageFull

ADAPTER = "weights/smoke/fine-tuned-0"


@pytest.fixture
def installed(tmp_path, monkeypatch, own_cache):
    """An ordinary installation whose wheel left an adapter out, and the folder that it is fetched from."""
    project, web = tmp_path / "installed", tmp_path / "web"
    shutil.copytree(ROOT / ADAPTER, web / f"raw/v{version('peaks-and-gates')}" / ADAPTER)
    shutil.copytree(ROOT / ADAPTER, project / ADAPTER, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("_toc.yml", "requirements-dev.lock", "book/claims.yml"):
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "_config.yml").write_text(f'repository:\n  url: "{web.as_uri()}"\n')
    monkeypatch.setattr(cache, "checkout", lambda: None)
    monkeypatch.setattr(cache, "project_folder", lambda: project)
    return project, web


def test_weights_that_the_wheel_leaves_out_are_fetched_once_and_checked(installed, monkeypatch):
    project, _ = installed
    checkpoint = cache.shipped(f"{ADAPTER}/checkpoints/step-8")
    assert checkpoint.parent.parent.name == "fine-tuned-0" and (checkpoint / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(cache, "fetch", None)
    assert cache.shipped(ADAPTER) == checkpoint.parents[1]
    assert cache.shipped("weights/nowhere") == project / "weights/nowhere"


def test_what_is_fetched_must_be_what_the_card_says(installed):
    project, web = installed
    (model,) = web.rglob("smoke/fine-tuned-0/adapter_model.safetensors")
    model.write_bytes(b"another")
    with pytest.raises(HashMismatch, match=r"adapter_model\.safetensors is damaged"):
        cache.shipped(ADAPTER)
    model.unlink()
    with pytest.raises(MissingFile, match="not part of the package, and file:"):
        cache.shipped(ADAPTER)
    (project / "_config.yml").write_text('repository:\n  url: ""  # none yet\n')
    with pytest.raises(MissingFile, match="no repository is named"):
        cache.shipped(ADAPTER)


def test_a_download_that_is_cut_off_is_one_message(installed, monkeypatch):
    response = MagicMock()
    response.__enter__().read.side_effect = IncompleteRead(b"half")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **settings: response)
    with pytest.raises(MissingFile, match="IncompleteRead"):
        cache.shipped(ADAPTER)


def test_the_pages_are_copied_into_an_empty_folder_only(installed, tmp_path, monkeypatch):
    project, _ = installed
    folder = tmp_path / "reading"
    (folder / ".venv").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert keys.root() == project and next(claim["id"] for claim in claims.load()) == "L1"  # a notebook on its own
    for path in (project, *project.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)  # an installation that cannot be written
    keys.copy_pages()
    for path in (project, *project.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert keys.root() == folder and not (folder / "weights").exists() and os.stat(folder / "book").st_mode & 0o200
    assert (folder / "src/peaks_and_gates/landscape/adp.py").is_file()
    (folder / "notes").mkdir()
    monkeypatch.chdir(folder / "notes")
    assert keys.root() == folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFile, match=r"holds .*empty folder"):
        keys.copy_pages()
    assert keys.root() == project


def test_a_copy_that_was_cut_off_goes_on(installed, tmp_path, monkeypatch):
    folder = tmp_path / "reading"
    folder.mkdir()
    monkeypatch.chdir(folder)
    copyfile, copied = shutil.copyfile, []

    def full(source, target):
        if len(copied) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(copyfile(source, target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageFull, match="Free some space"):
        keys.copy_pages()
    assert copied and keys.root() != folder
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    keys.copy_pages()
    assert keys.root() == folder


def test_no_file_is_read_in_the_encoding_of_the_machine():
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:peaks_and_gates"]
    modules = "claims, cli, jobs, site; from peaks_and_gates import figures, gate, landscape, models; cli.main()"
    code = f"import sys; sys.argv[1:] = ['status']; from peaks_and_gates.book import {modules}"
    status = subprocess.run([*command, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert status.returncode == 0 and "known_agreement" in status.stdout, status.stderr


def test_a_key_is_the_same_where_weights_were_left_out(installed):
    strings = {ADAPTER}
    without = keys.files_read(strings, {})
    shutil.copytree(ROOT / ADAPTER, installed[0] / ADAPTER, dirs_exist_ok=True)
    assert keys.files_read(strings, {}) == without and len(without) == 8


def first_cells():
    """Of each page its name, and the cells tagged `install`."""
    for name, path in runner.notebooks().items():
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        tagged = ["install" in keys.tags(cell) for cell in cells]
        assert tagged[:3] == [True, False, True] and "parameters" in keys.tags(cells[1]) and sum(tagged) == 2, name
        yield tuple("".join(cells[i]["source"]) for i in (0, 2))


@pytest.mark.parametrize("present", [True, False])
def test_every_page_opens_with_the_same_cells_which_install_the_book_where_it_is_missing(present, monkeypatch):
    ((install, fit),) = {*first_cells()}
    commands = []
    shell = SimpleNamespace(run_line_magic=lambda magic, line: commands.append(f"{magic} {line}"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) if present else None)
    exec(TransformerManager().transform_cell(install), {"get_ipython": lambda: shell})
    pins = "{pins}"  # IPython puts the names in
    assert commands == ([] if present else [f"pip install --quiet peaks-and-gates {pins}"])
    assert '"torch", "transformers", "numpy"' in install and "presets.fitting(globals())" in fit


def test_values_are_smaller_where_pages_are_guests_without_a_gpu(monkeypatch, capsys):
    page = {"preset": "laptop", "n_subjects": 32, "shots": [0], "seed": 0, "other": 1}
    assert presets.fitting(page) == {}
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    quick = presets.load("quick")
    assert presets.fitting(page) == {"preset": "quick", "n_subjects": quick["n_subjects"]}  # the shots are the reader's
    assert "Without a GPU" in capsys.readouterr().out and quick["n_subjects"] < 32
    assert presets.fitting(page | {"preset": "smoke"}) == {}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert presets.fitting(page) == {}
    monkeypatch.undo()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.setenv("PG_RECORD", "somewhere")  # `pg run` says how large a page is
    assert presets.fitting(page) == {}


@pytest.mark.parametrize("url", ["", "https://example.org/someone/peaks-and-gates"])
def test_a_named_repository_turns_the_buttons_on(url):
    spec = importlib.util.spec_from_file_location("peaks_book", ROOT / "book/_ext/peaks_book.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    options = {"repository_url": url, "launch_buttons": {"colab_url": "https://colab.example"}}
    config = SimpleNamespace(pg_preset="laptop", html_theme_options=options)
    extension.configure(None, config)
    assert config.html_theme_options.get("use_edit_page_button", False) == bool(url)
    assert bool(config.html_theme_options["launch_buttons"]) == bool(url)


def test_a_half_installed_environment_is_named(monkeypatch):
    cli.require_packages("site")
    needs = ["numpy>=99", "torch>=2", "no-such-thing>=1", "gone>=1; extra == 'site'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: needs)
    with pytest.raises(BookError, match='install "numpy>=99" "no-such-thing>=1"'):
        cli.require_packages()
    with pytest.raises(BookError, match='"no-such-thing>=1" "gone>=1"'):
        cli.require_packages("site")
