"""The command line: it translates arguments and errors, and does nothing else."""

from __future__ import annotations

import errno
import json
import math
import sys
import sysconfig
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from data import DatasetError
from pipeline.errors import Interrupted, SoftcacheError, UserError

app = typer.Typer(
    name="softcache",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run an expensive teacher once, cache its soft targets, train any number of students from the cache.\n\n"
    "Each stage runs the earlier stages that it needs, and only what changed: softcache student digits",
)
caches_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, show, verify, repack, pin, remove, import and export target caches.",
)
recipe_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What a recipe may say.")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"softcache {version('softcache')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; `main` takes --debug out of the arguments, so that it may stand anywhere."""


app.add_typer(caches_app, name="caches")
app.add_typer(recipe_app, name="recipe")

RecipeArgument = Annotated[str, typer.Argument(help="A recipe file, or the name of one in recipes/.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the recipe; may be given several times."),
]
WorkspaceOption = Annotated[Path, typer.Option(help="The folder that holds runs/ and caches/.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(envvar="SOFTCACHE_DATA", help="Where relative paths of datasets start.", show_default="here"),
]
TensorboardOption = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Write each validation there as TensorBoard event files.", show_default="none"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = Path()


def _run_stage(
    stage: str,
    recipe: str,
    overrides: list[str] | None,
    workspace: Path,
    data_dir: Path | None,
    *,
    verify: bool = False,
    tensorboard: Path | None = None,
) -> None:
    from stages.chain import complete_curves, open_experiment, runner_of, say

    experiment = open_experiment(recipe, overrides or [], workspace, data_dir, tensorboard)
    if verify:
        from stages.caches import verify_training_cache

        say(verify_training_cache(experiment))
    runner = runner_of(experiment)
    ran = runner.run(stage)
    if tensorboard is not None:
        complete_curves(experiment, runner, stage)
    if ran:
        return
    is_there = any(step.stage == stage for step in runner.plan(stage))
    say(f"{stage}: {'up to date' if is_there else runner.absent(stage)}; nothing ran")


@app.command()
def teacher(
    recipe: RecipeArgument = "digits",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
    tensorboard: TensorboardOption = None,
) -> None:
    """Train the teacher."""
    _run_stage("teacher", recipe, overrides, workspace, data_dir, tensorboard=tensorboard)


@app.command("teacher-targets")
def teacher_targets(
    recipe: RecipeArgument = "digits",
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Samples in each forward pass; auto: the largest that fits a GPU, the fastest on a CPU.",
            show_default="targets.batch_size",
        ),
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Run the teacher once; seal caches of its soft targets."""
    given = [] if batch_size is None else [f"targets.batch_size={batch_size}"]
    _run_stage("teacher-targets", recipe, [*(overrides or []), *given], workspace, data_dir)


@app.command()
def encoding(
    recipe: RecipeArgument,
    max_kl: Annotated[
        float | None,
        typer.Option(
            help="Largest mean KL(exact || decoded) at the student's temperature.",
            show_default="student.distillation.max_kl, or 1e-3",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many training samples to measure on.", show_default="4096, fewer of many classes"
        ),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Set the recipe file's [targets] to the choice.")] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Try every encoding on a sample of the teacher's outputs; choose the smallest that is near enough."""
    from pipeline.encoding_trials import as_json as plain
    from pipeline.encoding_trials import table_of
    from stages.chain import say
    from stages.encoding import refuse_to_write, try_encodings, write_choice

    if write:
        refuse_to_write(recipe, overrides or [])
    found = try_encodings(recipe, overrides or [], workspace, data_dir, max_kl, samples)
    print(json.dumps(plain(found), indent=1) if as_json else table_of(found))
    choice = found.chosen()
    if write:
        (say if as_json else print)(write_choice(recipe, choice, found.wanted_at))


@app.command()
def student(
    recipe: RecipeArgument = "digits",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every sha256 of the cache first.")] = False,
    tensorboard: TensorboardOption = None,
) -> None:
    """Train students from the cache, without the teacher."""
    _run_stage("student", recipe, overrides, workspace, data_dir, verify=verify, tensorboard=tensorboard)


@app.command()
def baseline(
    recipe: RecipeArgument = "digits",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
    tensorboard: TensorboardOption = None,
) -> None:
    """Train the same students on labels alone, tuned."""
    _run_stage("baseline", recipe, overrides, workspace, data_dir, tensorboard=tensorboard)


@app.command()
def evaluate(
    recipe: RecipeArgument = "digits",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    tensorboard: TensorboardOption = None,
) -> None:
    """Compare teacher, students and baselines."""
    from stages.chain import complete_curves, open_experiment, runner_of, say
    from stages.evaluate import METRICS_FILE

    experiment = open_experiment(recipe, overrides or [], workspace, data_dir, tensorboard)
    runner = runner_of(experiment, report=say if as_json else print)
    if not runner.run("evaluate"):
        say("evaluate: up to date; nothing ran")
    if tensorboard is not None:
        complete_curves(experiment, runner, "evaluate")
    [record] = runner.records("evaluate")
    metrics = experiment.records.folder_of("evaluate", record.key) / METRICS_FILE
    print(metrics.read_text() if as_json else record.values["table"])


@app.command()
def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE | RUN...]", help="A recipe; with --compare, the runs.")
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Put runs of one cache side by side: keys of evaluate's results, or folders."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --compare, the file to write.", show_default="compare.html"),
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Show one comparison, or several side by side, as an HTML page."""
    from stages.chain import open_experiment, runner_of, say
    from stages.report import PAGE_FILE, compare_runs, refuse_ignored, the_one_recipe

    if compare:
        refuse_ignored(overrides or [], data_dir)
        print(compare_runs(names or [], workspace, output or Path("compare.html")))
        return
    experiment = open_experiment(the_one_recipe(names, output), overrides or [], workspace, data_dir)
    runner = runner_of(experiment)
    if not any(step.stage == "report" for step in runner.run("report")):
        say("report: up to date; nothing ran")
        [record] = runner.records("report")
        print(experiment.records.folder_of("report", record.key) / PAGE_FILE)


@app.command()
def predict(
    recipe: RecipeArgument,
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A .npz file with an array x, an image, a folder of images, or: test."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV file to write.")] = Path("predictions.csv"),
    seed: Annotated[int | None, typer.Option(help="Which student; default: the best on validation.")] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Predict with a trained student; write a CSV file."""
    from stages.chain import open_experiment, runner_of
    from stages.predict import predict_to_csv

    experiment = open_experiment(recipe, overrides or [], workspace, data_dir)
    runner = runner_of(experiment)
    runner.run("student")
    print(predict_to_csv(experiment, runner.records("student"), source, output, seed))


@app.command()
def status(
    recipe: RecipeArgument = "digits",
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what each stage would run, and why; run nothing."""
    from stages.chain import open_experiment, runner_of
    from stages.status import status_of, table_of

    experiment = open_experiment(recipe, overrides or [], workspace, data_dir)
    found = status_of(runner_of(experiment))
    experiment.save_memory()
    print(json.dumps(found, indent=1) if as_json else table_of(found))


def _refuse_no_price(value: float | None) -> float | None:
    if value is not None and not 0 <= value < math.inf:
        raise typer.BadParameter(f"{value} is no price; a number from 0 is needed.")
    return value


@app.command()
def plan(
    recipe: RecipeArgument = "digits",
    per_hour: Annotated[
        float | None,
        typer.Option(
            metavar="PRICE",
            help="What one device costs for an hour.",
            callback=_refuse_no_price,
            show_default="no price",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what was measured before.")] = False,
    as_json: JsonOption = False,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Time the teacher on a few rows; say rows, bytes, time and price of its caches before they are made."""
    from pipeline.planning.figures import as_json as plain
    from pipeline.planning.figures import text_of
    from stages.plan import make_plan

    found = make_plan(recipe, overrides or [], workspace, data_dir, per_hour, again=again)
    print(json.dumps(plain(found), indent=1) if as_json else text_of(found))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A state dict that torch.save wrote.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Convert pickled weights to safetensors.

    A pickle can run any code when it is opened. This command opens it with weights_only=True, which allows tensors and
    plain containers only; still, convert only files from people you trust, and keep the safetensors file instead.
    """
    from pipeline.weights import convert_pickle

    print(f"{convert_pickle(source, target)} tensors -> {target}")


@caches_app.command("list")
def caches_list(workspace: WorkspaceOption = HERE, as_json: JsonOption = False) -> None:
    """List the sealed caches of this workspace."""
    from stages.caches import list_caches

    print(list_caches(workspace, as_json))


@caches_app.command("show")
def caches_show(
    key: Annotated[str, typer.Argument(help="A key, its start, or a cache's folder.")],
    workspace: WorkspaceOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Show what a cache holds, what it was made from, and its certificate."""
    from stages.caches import show_cache

    print(show_cache(workspace, key, as_json))


@caches_app.command("verify")
def caches_verify(
    key: Annotated[str | None, typer.Argument(help="A key, its start, or a cache's folder; default: all.")] = None,
    workspace: WorkspaceOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of a cache against its manifest. Exit code 3 when anything differs."""
    from stages.caches import verify_caches

    print(verify_caches(workspace, key, as_json))


@caches_app.command("repack")
def caches_repack(
    key: Annotated[str, typer.Argument(help="A key, its start, or a cache's folder.")],
    layout: Annotated[
        Literal["zarr", "hdf5"] | None, typer.Option(help="The layout to store it in.", show_default="as it is")
    ] = None,
    compression: Annotated[
        Literal["none", "zstd", "blosc-lz4"] | None,
        typer.Option(help="The compression of its blocks; zarr only.", show_default="as it is"),
    ] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Store a cache in another layout or compression, without the teacher."""
    from stages.caches import repack_cache

    print(repack_cache(workspace, key, layout, compression))


@caches_app.command("gc")
def caches_gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Remove interrupted caches as well.")] = False,
    workspace: WorkspaceOption = HERE,
    as_json: JsonOption = False,
) -> None:
    """Say which caches no run and no pin uses, and why the others stay; remove them when that is agreed to.

    Caches that share blocks with one that stays are kept. Without a terminal nothing is removed unless --yes says so.
    """
    from stages.caches import collect_garbage
    from stages.chain import say

    def agreed(question: str) -> bool:
        try:
            return yes or (not as_json and sys.stdin.isatty() and typer.confirm(question, err=True))
        except typer.Abort:
            raise Interrupted("interrupted: nothing was removed.") from None

    said = collect_garbage(workspace, unfinished=unfinished, as_json=as_json, agreed=agreed, tell=print)
    (say if as_json else print)(said)


@caches_app.command("pin")
def caches_pin(
    key: Annotated[str, typer.Argument(help="A key, its start, or a cache's folder.")],
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
    workspace: WorkspaceOption = HERE,
) -> None:
    """Keep a cache when gc removes others, whatever the runs say."""
    from stages.caches import pin_cache

    print(pin_cache(workspace, key, note))


@caches_app.command("unpin")
def caches_unpin(
    key: Annotated[str, typer.Argument(help="A key, its start, or a cache's folder.")],
    workspace: WorkspaceOption = HERE,
) -> None:
    """Let a cache go when no run uses it."""
    from stages.caches import unpin_cache

    print(unpin_cache(workspace, key))


@caches_app.command("import")
def caches_import(
    recipe: RecipeArgument,
    file: Annotated[Path, typer.Argument(help="A .npy, .npz, .parquet or .csv file of outputs.")],
    values: Annotated[
        Literal["logits", "log-probabilities", "probabilities"] | None,
        typer.Option(help="What its numbers are.", show_default="as the recipe says, or logits"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="T that its probabilities were softened with.", show_default="as the recipe says, or 1"),
    ] = None,
    overrides: SetOption = None,
    workspace: WorkspaceOption = HERE,
    data_dir: DataDirOption = None,
) -> None:
    """Seal the caches of a recipe from a file of outputs that its teacher gave elsewhere.

    The same as teacher-targets with [teacher.outputs]; what the recipe says of another teacher is left aside. Rows are
    joined to samples by digest, by index (the place in the source) or by order; docs/GUIDE.md has the names.
    """
    from stages.exchange import import_outputs

    print(import_outputs(recipe, file, values, temperature, overrides or [], workspace, data_dir))


@caches_app.command("export")
def caches_export(
    key: Annotated[str, typer.Argument(help="A key, its start, or a cache's folder.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .npz or .parquet file to write.")],
    temperature: Annotated[
        float | None,
        typer.Option(help="T of the probabilities; one that the certificate covers.", show_default="the cache's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Write a cache's digests, labels and probabilities to one file, for other tools."""
    from stages.exchange import export_cache

    print(export_cache(workspace, key, target, temperature, force))


@recipe_app.command("explain")
def recipe_explain() -> None:
    """List every field of a recipe with its type, default and meaning."""
    from pipeline.recipe_reader import explain_fields

    for key, kind, default, meaning in explain_fields():
        if key.startswith("["):
            print(f"\n{key}  {meaning}")
        else:
            print(
                f"  {key}: {kind}, default {default}\n      {meaning}"
                if default != "required"
                else f"  {key}: {kind}, required\n      {meaning}"
            )


def main() -> None:
    """Run the command line; every error becomes one paragraph on stderr and an exit code, unless --debug is given."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except KeyboardInterrupt:
        _fail("interrupted before anything ran.", Interrupted.exit_code)
    except SystemExit as ended:  # typer turns Ctrl-C into this one, without a word
        if ended.code != Interrupted.exit_code:
            raise
        _fail(
            "interrupted; finished stages and the last checkpoint of a training are kept. Run the same command again to go on.",
            Interrupted.exit_code,
        )
    except (SoftcacheError, DatasetError) as problem:
        if debug:
            raise
        _fail(str(problem), problem.exit_code if isinstance(problem, SoftcacheError) else UserError.exit_code)
    except OSError as problem:
        if debug:
            raise
        _fail(_explained(problem), UserError.exit_code)
    except Exception as problem:  # a user's own model or dataset function may raise anything
        if debug:
            raise
        _fail(_located(problem), UserError.exit_code)


def _fail(message: str, exit_code: int) -> None:
    print(f"softcache: {message}", file=sys.stderr)
    sys.exit(exit_code)


def _explained(problem: OSError) -> str:
    where = f"{problem.filename}: " if problem.filename else ""
    advice = {
        errno.ENOSPC: "Free some space and run the same command again; everything finished is kept.",
        errno.EDQUOT: "Free some of your quota and run the same command again; everything finished is kept.",
        errno.EACCES: "Give yourself access to it; for runs/ and caches/, --workspace names another folder.",
        errno.EPERM: "Give yourself access to it; for runs/ and caches/, --workspace names another folder.",
        errno.EROFS: "It may not be written; for runs/ and caches/, --workspace names another folder.",
    }.get(problem.errno or 0, "Everything finished is kept; run with --debug to see where it happened.")
    return f"{where}{problem.strerror or problem}. {advice}"


def _located(problem: Exception) -> str:
    """What was raised, and the innermost place that is in no installed library: most likely a user's own function."""
    frames = traceback.extract_tb(problem.__traceback__)
    libraries = ("site-packages", sysconfig.get_path("stdlib"))
    own = [frame for frame in frames if not any(folder in frame.filename for folder in libraries)]
    place = (own or frames)[-1]
    return (
        f"{type(problem).__name__}: {problem}, raised in {place.name} ({place.filename}, line {place.lineno}). "
        "Run with --debug to see the traceback; where this is not your own code, please report it."
    )


if __name__ == "__main__":
    main()
