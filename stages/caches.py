"""caches: list, show, verify, repack, pin and remove the target caches of a workspace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cache_users import pin, pins, unpin
from pipeline.canonical import short
from pipeline.errors import UserError, VerificationError
from pipeline.experiment import Experiment, NotYet, Workspace
from pipeline.garbage import Judged, Sweep, in_both, refuse_while_a_run_works, remove, sweep_of
from pipeline.progress import stderr_bar
from pipeline.report.numbers import size
from pipeline.targets.encodings import encoding_name
from pipeline.targets.manifest import Manifest, read_manifest
from pipeline.targets.repack import repack
from pipeline.targets.shelf import Shelf
from pipeline.targets.verification import verify
from stages.chain import say


def shelf_of(workspace: Path, warn: Callable[[str], None] = say) -> Shelf:
    """The caches of a workspace. Raises UserError when there is no such folder: a typo must not pass for an empty one."""
    if not workspace.is_dir():
        raise UserError(f"--workspace {workspace}: no such folder.")
    return Shelf(Workspace(workspace).caches, warn)


def list_caches(workspace: Path, as_json: bool) -> str:
    """One line for each sealed cache."""
    found = [_summary(folder, manifest) for folder, manifest in shelf_of(workspace).sealed()]
    if as_json:
        return json.dumps(found, indent=1)
    wide = max([14, *(2 + len(cache["encoding"]) for cache in found)])
    lines = [
        f"{'key':14}{'recipe':16}{'split':12}{'rows':>10} {'classes':>8} {'T':>5}  {'encoding':{wide}}{'layout':7}{'MB':>9}"
    ]
    lines += [
        f"{short(cache['key']):14}{cache['recipe']:16}{cache['split']:12}{cache['rows']:>10,} {cache['classes']:>8} "
        f"{cache['temperature']:>5g}  {cache['encoding']:{wide}}{cache['layout']:7}{cache['bytes'] / 1e6:>9.2f}"
        for cache in found
    ]
    return "\n".join(lines) if found else "no caches here; softcache teacher-targets makes them"


def show_cache(workspace: Path, key: str, as_json: bool) -> str:
    """The manifest, as JSON or for people."""
    folder = shelf_of(workspace).named(key)
    manifest = read_manifest(folder)
    if as_json:
        return json.dumps(manifest.model_dump(mode="json"), indent=1)
    summary = _summary(folder, manifest)
    lines = [f"{name:12} {value}" for name, value in summary.items()]
    lines += [f"{'classes':12} {', '.join(manifest.class_names)}", f"{'teacher':12} {manifest.teacher.get('digest')}"]
    if manifest.provenance.get("teacher_form") not in (None, "trained"):
        lines.append(f"{'imported as':12} {manifest.provenance['teacher_form']}: {manifest.provenance.get('device')}")
    lines += [
        f"{'made':12} {manifest.provenance.get('sealed')} by softcache commit {manifest.provenance.get('commit')}"
    ]
    lines.append(f"certificate, measured on {manifest.certificate['measured_on']}: KL(exact || decoded) in nats")
    for donor, rows in manifest.certificate.get("inherited", {}).items():
        lines.append(f"  of these, {rows:,} rows were taken from cache {short(donor)} and count as it measured its own")
    for temperature, error in manifest.certificate["temperatures"].items():
        kl = "infinite" if error["kl_mean"] is None else f"mean {error['kl_mean']:.2e}, max {error['kl_max']:.2e}"
        lines.append(
            f"  T = {float(temperature):<5g} {kl}; largest error of a probability {error['absolute_error_max']:.1e}"
        )
    return "\n".join(lines)


def verify_caches(workspace: Path, key: str | None, as_json: bool) -> str:
    """Check one cache, or all, those too that lost their manifest.

    Raises VerificationError naming, for each cache that is not whole, the first object that differs.
    """
    shelf = shelf_of(workspace)
    checked, problems = [], []
    for folder in [shelf.named(key)] if key else [*shelf.folders(), *shelf.without_manifest()]:
        try:
            checked.append(verify(folder, stderr_bar))
        except VerificationError as problem:
            problems.append(str(problem))
    if problems:
        raise VerificationError("\n".join(problems))
    if as_json:
        return json.dumps(checked, indent=1)
    lines = [
        f"{short(cache['key'])}: {cache['objects']} objects, {cache['rows']:,} rows, {cache['checked']}: whole"
        for cache in checked
    ]
    return "\n".join(lines) if checked else "no caches here; nothing to verify"


def repack_cache(workspace: Path, key: str, layout: str | None, compression: str | None) -> str:
    """Store a cache in another layout or compression under the same key."""
    if layout is None and compression is None:
        raise UserError("say what to change: --layout, --compression, or both.")
    folder = shelf_of(workspace).named(key)
    changed = repack(folder, layout, stderr_bar, compression=compression)
    manifest = read_manifest(folder)
    form = f"{manifest.layout}, compression {manifest.compression}"
    return f"{short(folder.name)}: {'now' if changed else 'already'} {form} -> {folder}"


def collect_garbage(
    workspace: Path, *, unfinished: bool, as_json: bool, agreed: Callable[[str], bool], tell: Callable[[str], None]
) -> str:
    """Say which caches no run and no pin uses; remove them if that is `agreed` to and nothing came to use them meanwhile.

    Raises LockedError while a run works in this workspace, now, after the question or before a removal.
    """
    shelf_of(workspace)
    place = Workspace(workspace)
    refuse_while_a_run_works(place)
    sweep = sweep_of(place, unfinished=unfinished)
    tell(json.dumps(_sweep_as_json(sweep), indent=1) if as_json else _sweep_for_people(sweep))
    count = len(sweep.goes) + len(sweep.leftovers)
    if not count:
        return "nothing to remove"
    if not agreed(f"Remove {len(sweep.goes)} caches?"):
        return "nothing was removed; --yes removes them"
    refuse_while_a_run_works(place)  # the question may have stood for hours
    agreed_to = in_both(sweep, sweep_of(place, unfinished=unfinished))
    remove(place, agreed_to)
    spared = len(sweep.goes) - len(agreed_to.goes)
    since = f"; {spared} stayed, since something came to use them after they were listed" if spared else ""
    return f"removed {len(agreed_to.goes)} caches; {size(agreed_to.frees)} freed{since}"


def pin_cache(workspace: Path, key: str, note: str) -> str:
    """Keep a cache of this workspace, whatever the runs say. Raises UserError for one that lies elsewhere."""
    name = _name_here(shelf_of(workspace), key)
    pin(Workspace(workspace), name, note)
    return f"{short(name)}: pinned; caches gc will keep it"


def unpin_cache(workspace: Path, key: str) -> str:
    """Let a cache go when no run uses it; its folder may be gone already."""
    place, shelf = Workspace(workspace), shelf_of(workspace)
    matching = [name for name in pins(place) if name.startswith(key)]
    pinned = matching[0] if len(matching) == 1 else _name_here(shelf, key)
    unpin(place, pinned)
    return f"{short(pinned)}: not pinned any more"


def _name_here(shelf: Shelf, key: str) -> str:
    """The name of a cache's folder in this workspace: pins of one workspace keep nothing in another."""
    folder = shelf.named(key).absolute()
    if folder.parent.resolve() != shelf.folder.resolve():
        raise UserError(
            f"{key} is not in {shelf.folder}, where this workspace has its caches: a pin keeps only caches of the workspace that "
            "it is in. Give --workspace the folder whose caches/ it is in."
        )
    return folder.name


def verify_training_cache(experiment: Experiment) -> str:
    """Check the cache that serves the training split, whether or not a student must run.

    Raises VerificationError naming the first object that differs.
    """
    try:
        folder = experiment.cache_folder("training")
    except NotYet:
        folder = None
    if folder is None:
        return "verify: no cache of the training split yet; a new one is checked while it is made"
    checked = verify(folder, experiment.bar)
    return f"verify: {short(checked['key'])}, {checked['objects']} objects, {checked['checked']}: whole"


def _sweep_for_people(sweep: Sweep) -> str:
    lines = [f"keep    {one.name:12}  {size(one.bytes):>9}  {'; '.join(one.stays)}" for one in sweep.stays]
    lines += [
        f"remove  {one.name:12}  {size(one.bytes):>9}  {'no run and no pin uses it' if one.sealed else 'unfinished'}"
        for one in sweep.goes
    ]
    lines += [f"remove  {path.name[:24]}  left by a command that was killed" for path in sweep.leftovers]
    return "\n".join([*lines, f"removing frees {size(sweep.frees)}"] if sweep.goes or sweep.leftovers else lines)


def _sweep_as_json(sweep: Sweep) -> dict[str, Any]:
    def described(one: Judged) -> dict[str, Any]:
        return {"key": one.key, "folder": str(one.folder), "bytes": one.bytes, "stays": list(one.stays)}

    return {
        "remove": [described(one) for one in sweep.goes],
        "keep": [described(one) for one in sweep.stays],
        "leftovers": [str(path) for path in sweep.leftovers],
        "frees": sweep.frees,
    }


def _summary(folder: Path, manifest: Manifest) -> dict[str, Any]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "key": manifest.key,
        "folder": str(folder),
        "recipe": str(manifest.provenance.get("recipe")),
        "split": manifest.split,
        "rows": manifest.rows,
        "classes": len(manifest.class_names),
        "temperature": manifest.temperature,
        "encoding": encoding_name(manifest.encoding),
        "layout": manifest.layout,
        "compression": manifest.compression,
        "bytes": sum(path.stat().st_size for path in files),
    }
