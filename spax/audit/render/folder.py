"""The report's folder: all of it or nothing, and never anybody else's."""

import json
import os
import pathlib
import shutil
import tempfile

from spax.audit.errors import AuditError
from spax.audit.render.html import html
from spax.audit.render.json import SCHEMA, to_json
from spax.audit.sections import AuditReport

__all__ = ["FILES", "check", "write"]

FILES = ("report.html", "report.json")


def check(folder: str | os.PathLike[str]) -> None:
    """Finds out, before any long work, whether a report can be written there; leaves no trace.

    Args:
      folder: a folder that does not exist, is empty, or holds an earlier report and nothing else.

    Raises:
      AuditError: if the folder is someone else's or cannot be written.
    """
    path = _resolved(folder)
    _refuse_foreign(path)
    # Asking for permissions is not enough: a read-only disk or a full one shows only when tried.
    try:
        trial = tempfile.mkdtemp(prefix=".spax-", dir=_anchor(path))
        os.rmdir(trial)
    except OSError as error:
        raise _unwritable(path, error) from error


def write(report: AuditReport, folder: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``report.html`` and ``report.json`` into a folder, replacing an earlier report.

    Args:
      report: the report.
      folder: as in `check`; its parents are made.

    Returns:
      The path of the page.

    Guarantees:
      The folder holds the whole report or what it held before, also if the writing is interrupted.

    Raises:
      AuditError: if the folder is someone else's or cannot be written.
    """
    path = _resolved(folder)
    texts = dict(zip(FILES, (html(report), to_json(report)), strict=True))
    _refuse_foreign(path)
    try:
        # On the same disk, so that moving it is one step; the inner folder gets usual permissions.
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=".spax-", dir=_anchor(path)))
        try:
            made = scratch / "report"
            made.mkdir()
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8", newline="\n")
            path.parent.mkdir(parents=True, exist_ok=True)
            _move(made, path, scratch / "earlier")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path / FILES[0]


def _move(made: pathlib.Path, path: pathlib.Path, aside: pathlib.Path) -> None:
    """Moves a folder into place; an earlier one is put aside, and back if that fails."""
    if not path.exists():
        os.rename(made, path)
        return
    try:
        os.rename(path, aside)
        os.rename(made, path)
    except BaseException:
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        raise


def _resolved(folder: str | os.PathLike[str]) -> pathlib.Path:
    try:
        return pathlib.Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise AuditError(f"{folder!r} is no usable path ({error}); name another folder") from error


def _anchor(path: pathlib.Path) -> pathlib.Path:
    """The nearest folder above that exists."""
    return next(parent for parent in path.parents if parent.exists())


def _refuse_foreign(path: pathlib.Path) -> None:
    try:
        if not path.exists():
            return
        if not path.is_dir():
            raise AuditError(f"{path} is not a folder; name a new folder for the report")
        names = sorted(entry.name for entry in path.iterdir())
        here = pathlib.Path.cwd()
    except OSError as error:
        raise _unwritable(path, error) from error
    if path == here or path in here.parents or os.path.ismount(path):
        raise AuditError(f"{path} cannot be replaced while it is in use; name a folder inside it")
    if names and not (set(names) <= set(FILES) and _is_report(path / "report.json")):
        raise AuditError(
            f"{path} exists and is not an audit's report (it holds {names[0]!r}); "
            "name a new folder for the report"
        )


def _is_report(file: pathlib.Path) -> bool:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("schema") == SCHEMA


def _unwritable(path: pathlib.Path, error: OSError) -> AuditError:
    reason = error.strerror or type(error).__name__
    return AuditError(f"cannot write a report to {path} ({reason}); name another folder")
