"""The `pg` command: run the pages, build the site, see what is done, compare two records."""

import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement

from ..errors import BookError
from . import keys, presets, runner

preset_option = click.option("--preset", default="laptop", help=f"Size of the run: {', '.join(presets.NAMES)}.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="peaks-and-gates")
def cli() -> None:
    """Peaks & Gates: run the book's pages, build its site, and see what is done."""


@cli.command()
@preset_option
@click.option("--only", "pages", multiple=True, metavar="NAME", help="A page to run; may be repeated.")
@click.option("-p", "changes", multiple=True, metavar="KEY=VALUE", help="Change one of the preset's parameters.")
@click.option("--model", help="A language model, or a vision-language model the book knows, to run the pages on.")
@click.option("--force", is_flag=True, help="Run again what is done; stored hidden states are still reused.")
@click.option("--executor", type=click.Choice(["here", "local", "slurm"]), default="here", help="Where pages run.")
@click.option("--profile", type=click.Path(exists=True), help="Settings of jobs (YAML), such as slurm_partition: gpu.")
def run(preset: str, pages: tuple[str, ...], changes: tuple[str, ...], model: str | None, **how: Any) -> None:
    """Run the pages at one size and record their tables."""
    from . import jobs

    require_packages()
    keys.copy_pages()
    parameters = runner.model_parameters(model) if model else {}
    parameters |= dict(presets.parse_assignment(text) for text in changes)
    if failures := jobs.run(runner.plan(preset, pages, parameters), **how):
        raise BookError("\n".join([*failures, "Finished pages are kept; run the same command to resume."]))


@cli.command()
@preset_option
def site(preset: str) -> None:
    """Build the website from what was run or recorded; computes nothing."""
    from .site import build

    require_packages("site")
    keys.copy_pages()
    click.echo(f"The site is {build(preset) / 'index.html'}")


@cli.command()
@preset_option
def status(preset: str) -> None:
    """Show which pages are done here, recorded elsewhere, stale or missing at a size."""
    for job in runner.plan(preset):
        manifest = job.manifest
        when = f"{manifest['created'][:10]}, {manifest['seconds'] / 60:.1f} min" if manifest else "never run"
        click.echo(f"{job.state:9} {job.name:20} {when}")


@cli.command()
@click.argument("before", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tolerance", default=1e-4, help="Largest difference between two equal numbers.")
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Compare two records, such as results/laptop then and now; exit code 1 if numbers or verdicts differ."""
    from . import claims

    lines = claims.differences(before, after, tolerance)
    click.echo("\n".join(lines) or "The same tables, numbers and verdicts.")
    sys.exit(bool(lines))


def require_packages(extra: str = "") -> None:
    """Raise BookError if a package that is needed is not there, or of a version that does not do."""
    wrong = []
    for needed in map(Requirement, metadata.requires("peaks-and-gates")):
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        installed = [package.version for package in metadata.distributions(name=needed.name)]
        if not (installed and needed.specifier.contains(installed[0], prereleases=True)):
            wrong.append(f"{needed.name}{needed.specifier}")
    if wrong:
        install = " ".join([sys.executable, "-m pip install", *(f'"{name}"' for name in wrong)])
        raise BookError(f"This Python has not all that is needed, or of another version. Run `make`, or: {install}")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: an error of ours is one message and exit code 2, with no traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("pg: stopped"))  # so that jobs of this machine are stopped, too
    try:
        return cli.main(arguments, prog_name="pg", standalone_mode=True)
    except (BookError, ModuleNotFoundError) as error:  # no module: half an installation, which `pg run` says more of
        click.echo(f"pg: {error}", err=True)
        sys.exit(2)
