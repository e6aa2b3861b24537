"""The `pg` command: thin, every verb is a few lines over the modules that do the work."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from .. import presets
from ..errors import BookError
from ..store import no_room

preset_option = click.option(
    "--preset", default="laptop", show_default=True, help=f"Size of the run: {', '.join(presets.names())}."
)
only_option = click.option("--only", multiple=True, metavar="NAME", help="A notebook to run; may be repeated.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="peaks-and-gates")
def cli() -> None:
    """Peaks & Gates: run the book's notebooks, build its site, and see what is done."""


@cli.command()
@preset_option
@only_option
@click.option("-p", "changes", multiple=True, metavar="KEY=VALUE", help="Change one of the preset's parameters.")
@click.option("--model", help="A language model, or a vision-language model the book knows, to run the pages on.")
@click.option("--force", is_flag=True, help="Run again what is done; stored hidden states are still reused.")
@click.option(
    "--executor",
    type=click.Choice(["here", "local", "slurm"]),
    default="here",
    show_default=True,
    help="Where: in this process, page by page; in several on this machine; as jobs of a SLURM cluster.",
)
@click.option("--profile", metavar="FILE", help="Settings of the jobs (YAML), such as slurm_partition: gpu.")
def run(
    preset: str,
    only: tuple[str, ...],
    changes: tuple[str, ...],
    model: str | None,
    force: bool,
    executor: str,
    profile: str | None,
) -> None:
    """Run the notebooks at one size and record their tables."""
    from .. import claims
    from . import runner as book

    changed = book.model_parameters(model) if model else {}
    changed |= dict(presets.parse_assignment(text) for text in changes)
    jobs = book.plan(preset, only, changed)
    book.check_parameters(jobs, changed)
    if executor == "here":
        failures = book.run(jobs, force)
    else:
        from .. import cluster

        failures = cluster.run(jobs, executor, profile, force)
    if jobs[0].record.is_dir():
        click.echo(f"Claims: {claims.count(claims.judge_all(jobs[0].record))}. The record is {jobs[0].record}.")
    if failures:
        raise BookError("\n".join([*failures, "What was finished is kept; run the same command to go on."]))


@cli.command()
@preset_option
def site(preset: str) -> None:
    """Build the website from what was run or recorded; computes nothing."""
    from .. import site as builder

    click.echo(f"The site is {builder.build(preset) / 'index.html'}")


@cli.command()
@preset_option
def status(preset: str) -> None:
    """Show which notebooks are done here, recorded elsewhere, stale or missing at a size."""
    from . import runner as book

    for job in book.plan(preset):
        manifest = job.manifest
        when = f"{manifest['created'][:10]}, {manifest['seconds'] / 60:.1f} min" if manifest else "never run"
        click.echo(f"{job.state:9} {job.name:16} {when}")


@cli.command()
@preset_option
@click.option("--only", multiple=True, metavar="NAME", help="A recipe of finetune.yml; may be repeated.")
@click.option("--seed", "seeds", multiple=True, type=int, help="A seed of the fine-tuning; may be repeated.")
def finetune(preset: str, only: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train the book's adapters into weights/; a run that was killed goes on where it was."""
    from .. import finetune as tuning

    for name in only or tuning.recipes(preset):
        tuning.train_all(preset, name, seeds)


@cli.command()
@preset_option
@click.argument("names", nargs=-1)
@click.option("--seed", "seeds", multiple=True, type=int, help="A seed of the recipe; may be repeated.")
def train(preset: str, names: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train minis (mini-native, ...; all if none is named) into weights/; a killed run goes on where it was."""
    from .. import mini_training

    mini_training.train_all(preset, [name.removeprefix("mini-") for name in names], seeds)


@cli.command()
@preset_option
@click.option("--only", multiple=True, metavar="CELL", help="A cell of gate_study.yml; may be repeated.")
@click.option("--seed", "seeds", multiple=True, type=int, help="A seed of a cell; may be repeated.")
def study(preset: str, only: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Train the grid of the page on narrow gates and leave a card of each model; a killed run goes on where it was."""
    from .. import study_training

    study_training.run(preset, only, seeds)


@cli.command("export-results")
@click.argument("folder")
@click.option("--name", required=True, help="What the run is to be called: small letters, digits and hyphens.")
def export_results(folder: str, name: str) -> None:
    """Pack the tables of a run, such as _build/results/laptop-1a2b3c4d, to contribute them; no hidden states."""
    from .. import contribute

    packed = contribute.pack(folder, name)
    click.echo(f"{packed}, {packed.stat().st_size / 1e6:.1f} MB. `pg check-results {packed}` says if it is complete.")


@cli.command("check-results")
@click.argument("path")
@click.option("--keep", is_flag=True, help="Take it in: its verdicts then stand on the scorecard, under its name.")
def check_results(path: str, keep: bool) -> None:
    """Say whether a packed run can be taken in, or every reason why not."""
    from .. import contribute

    if keep:
        click.echo(f"Taken in: {contribute.keep(path)}")
        return
    if found := contribute.problems(path):
        click.echo("\n".join(found))
        sys.exit(1)
    click.echo(f"{path} can be taken in.")


@cli.command("compare")
@click.argument("before")
@click.argument("after")
def compare_records(before: str, after: str) -> None:
    """Compare two records, such as results/laptop then and now; an error if a reader would be told otherwise."""
    from .. import compare

    found = compare.records(before, after)
    click.echo(compare.report(found))
    if not found.alike:
        sys.exit(1)


@cli.command()
@preset_option
@click.argument("names", nargs=-1)
def verify(preset: str, names: tuple[str, ...]) -> None:
    """Compute pages (all that are recorded if none is named) anew, from nothing, and compare them with the record."""
    from .. import verify
    from . import runner as book

    found = list(verify.pages(book.plan(preset, names)))
    click.echo(verify.report(found))
    if not all(one.holds for one in found):
        sys.exit(1)


@cli.command()
def doctor() -> None:
    """Say what this machine can run, and what it lacks."""
    from ..doctor import report

    lines, fit = report()
    click.echo("\n".join(lines))
    if not fit:
        raise BookError("This machine lacks something the laptop preset needs; see above.")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: an error of ours is one message and exit code 2, with no traceback."""
    try:
        return cli.main(arguments, prog_name="pg", standalone_mode=True)
    except BookError as error:
        said = str(error)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            said = (
                f"{str(error.filename)[:60]}… is longer than a file's name can be. Give the name of a file or a model."
            )
        elif no_room(error):
            said = str(error)
        else:
            raise
    click.echo(f"pg: {said}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
