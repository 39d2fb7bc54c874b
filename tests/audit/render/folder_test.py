import os
import pathlib

import pytest

from spax.audit import AuditError
from spax.audit.render import folder, html, to_json
from tests.audit.render import reports

OLD, NEW = reports.report(seconds=1.0), reports.report(title="Another", seconds=2.0)


def content(path):
    """Everything below a folder: text by name."""
    return {
        str(file.relative_to(path)): file.read_text(encoding="utf-8")
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def rendered(report, name="report"):
    return {f"{name}/report.html": html(report), f"{name}/report.json": to_json(report)}


def test_a_report_is_two_files(tmp_path):
    page = folder.write(OLD, tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert content(tmp_path) == rendered(OLD)
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_parents_are_made(tmp_path):
    folder.write(OLD, tmp_path / "a" / "b")
    assert content(tmp_path / "a") == rendered(OLD, "b")


def test_an_earlier_report_is_replaced_whole(tmp_path):
    for report in (OLD, NEW):
        folder.check(tmp_path / "report")
        folder.write(report, tmp_path / "report")
    assert content(tmp_path) == rendered(NEW)
    assert os.listdir(tmp_path) == ["report"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "report").mkdir()
    folder.write(OLD, tmp_path / "report")
    assert content(tmp_path) == rendered(OLD)


def test_checking_leaves_no_trace(tmp_path):
    folder.check(tmp_path / "a" / "report")
    assert os.listdir(tmp_path) == []


@pytest.fixture(params=[OSError(28, "No space left on device"), KeyboardInterrupt()], ids=type)
def error(request):
    return request.param


def refuses(error):
    if isinstance(error, OSError):
        return pytest.raises(AuditError, match=r"^[^\n]*No space left on device[^\n]*$")
    return pytest.raises(type(error))


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("files", [0, 1])
def test_a_file_that_fails_changes_nothing(tmp_path, monkeypatch, files, earlier, error):
    if earlier:
        folder.write(OLD, tmp_path / "report")
    before, write_text, done = content(tmp_path), pathlib.Path.write_text, []

    def fails(self, text, **options):
        whole = len(done) < files
        write_text(self, text if whole else text[: len(text) // 2], **options)
        if not whole:
            raise error
        done.append(self)

    monkeypatch.setattr(pathlib.Path, "write_text", fails)
    with refuses(error):
        folder.write(NEW, tmp_path / "report")
    assert len(done) == files
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == (["report"] if earlier else [])


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("renames", [0, 1])
def test_a_move_that_fails_leaves_one_whole_report(tmp_path, monkeypatch, renames, moved, error):
    """The old one is put aside, the new one moved in: either may fail, before or after."""
    folder.write(OLD, tmp_path / "report")
    rename, done = os.rename, []

    def fails(source, target):
        done.append(source)
        if len(done) != renames + 1:
            return rename(source, target)
        if moved:
            rename(source, target)
        raise error

    monkeypatch.setattr(os, "rename", fails)
    with refuses(error):
        folder.write(NEW, tmp_path / "report")
    assert content(tmp_path) == rendered(NEW if moved and renames else OLD)
    assert os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("taken", {"taken/thesis.tex": "x"}, "holds 'thesis.tex'"),
        ("taken", {"taken/report.html": "x"}, "not an audit's report"),
        ("taken", {"taken/report.json": '{"schema": "theirs"}'}, "not an audit's report"),
        ("taken", {"taken/report.json": "{"}, "not an audit's report"),
        ("taken", {"taken/report.json": "[]"}, "not an audit's report"),
        ("taken", {"taken/.git/config": "x"}, "holds '.git'"),
        ("file", {"file": "x"}, "is not a folder"),
        ("file/report", {"file": "x"}, "Not a directory"),
    ],
)
def test_what_is_not_ours_is_left_alone(tmp_path, name, files, said):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for act in (folder.check, lambda path: folder.write(NEW, path)):
        with pytest.raises(AuditError, match=said) as raised:
            act(tmp_path / name)
        assert "\n" not in str(raised.value)
    assert content(tmp_path) == files


def test_a_report_with_something_beside_it_is_not_ours(tmp_path):
    folder.write(OLD, tmp_path / "report")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(AuditError, match=r"holds 'notes\.txt'"):
        folder.write(NEW, tmp_path / "report")
    assert content(tmp_path) == before


def test_a_parent_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.tempfile, "mkdtemp", refused)
    for act in (folder.check, lambda path: folder.write(OLD, path)):
        with pytest.raises(AuditError, match=r"Permission denied.*another folder"):
            act(tmp_path / "report")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_a_path_that_cannot_be_is_said(path):
    with pytest.raises(AuditError):
        folder.check(path)


@pytest.mark.parametrize("path", ["", ".", "..", "/"])
def test_a_folder_in_use_is_not_replaced(tmp_path, monkeypatch, path):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(AuditError):
        folder.write(OLD, path)


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for report in (OLD, NEW):
        folder.write(report, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {k.partition("/")[2]: v for k, v in rendered(NEW).items()}


def test_links_inside_a_report_are_not_followed_for_writing(tmp_path):
    folder.write(OLD, tmp_path / "report")
    theirs = tmp_path / "theirs.html"
    theirs.write_text("theirs")
    (tmp_path / "report" / "report.html").unlink()
    (tmp_path / "report" / "report.html").symlink_to(theirs)
    folder.write(NEW, tmp_path / "report")
    assert theirs.read_text() == "theirs"
    assert content(tmp_path / "report") == {
        k.partition("/")[2]: v for k, v in rendered(NEW).items()
    }


def test_links_in_a_circle_are_said(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(AuditError):
        folder.check(tmp_path / "a")
