"""Every page, run at smoke size, gives the tables that the repository keeps; where the answer is known, it is given.

Pages run in forked processes that have the libraries loaded: the kernels of `pg run` are tried in book/test_runner.py.
"""

import json
import multiprocessing
import os
from pathlib import Path

import pandas as pd
import pytest
from IPython.display import display

from conftest import ROOT
from peaks_and_gates import record
from peaks_and_gates.book import runner

GOLDEN = ROOT / "tests" / "golden" / "pages"
JOBS = {job.name: job for job in runner.plan("smoke")}
STABLE = {"dtype": "float64"}  # in float32 processors differ by enough to swap two neighbours that are almost as near
ROUNDED = "in 16-bit numbers"  # rows that are, on any processor, in numbers of three digits


def execute(job, tables):
    """Execute the code cells of a page, as papermill would: the parameters behind the cell that sets them."""
    os.environ |= {"PG_RECORD": str(tables), "PG_PAGE": job.name, "TQDM_DISABLE": "1"}
    os.chdir(job.source.parent)
    variables = {"display": display}
    for number, cell in enumerate(json.loads(job.source.read_text())["cells"]):
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", ()):
            exec(compile("".join(cell["source"]), f"{job.name}, cell {number}", "exec"), variables)
            if "parameters" in cell["metadata"].get("tags", ()):
                variables |= job.parameters | STABLE


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Call with a page's name for its tables at smoke size; the page is run once."""
    folder = tmp_path_factory.mktemp("pages")

    def of_page(name: str) -> dict[str, pd.DataFrame]:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            parts = folder / name
            parts.mkdir()
            process = multiprocessing.get_context("fork").Process(target=execute, args=(JOBS[name], parts))
            process.start()
            process.join()
            assert process.exitcode == 0, f"{name} failed, see its traceback above"
            record.publish(parts, path, {})
        return record.read(path)

    return of_page


@pytest.mark.parametrize("page", JOBS)
def test_a_page_gives_its_golden_tables(page, tables):
    computed, golden = tables(page), record.read(Path(GOLDEN / f"{page}.parquet"))
    assert list(computed) == list(golden)
    for name, table in computed.items():
        rounded = table.get("group", pd.Series("", table.index)) == ROUNDED
        for rows, atol in ((~rounded, 1e-7), (rounded, 0.05)):
            pd.testing.assert_frame_equal(table[rows], golden[name][rows], rtol=1e-5, atol=atol, obj=f"{page}.{name}")
