"""Compiled code on disk, tried on a function that compiles at once."""

import importlib.util
import logging
from pathlib import Path

import pytest

from flowkit.flow import compiled


@pytest.fixture
def load_small(tmp_path, monkeypatch):
    """A function that imports a small compiled function again, as another process would."""
    source = tmp_path / "package" / "small.py"
    source.parent.mkdir()
    source.write_text("from numba import njit\n\n@njit\ndef double(x):\n    return 2 * x\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def load():
        from numba import types

        spec = importlib.util.spec_from_file_location("small", source)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        compiled.ensure_compiled(module.double, (types.int64,), title="doubling", seconds=6)
        assert module.double(21) == 42
        return module.double

    return load


def hits(dispatcher) -> int:
    return sum(dispatcher.stats.cache_hits.values())


def test_the_first_run_says_that_it_compiles_and_the_second_loads(load_small, caplog):
    caplog.set_level(logging.INFO, logger="flowkit")
    assert hits(load_small()) == 0
    [said] = [record.message for record in caplog.records]
    assert "compiling doubling" in said and "about 6 s" in said
    caplog.clear()
    assert hits(load_small()) == 1
    assert not caplog.records


@pytest.mark.parametrize("kind", ["*.nbc", "*.nbi"])
@pytest.mark.parametrize("length", [0, 20])
def test_truncated_compiled_code_is_deleted_and_made_again(load_small, caplog, kind, length):
    folder = Path(load_small().stats.cache_path)
    (file,) = folder.glob(kind)
    file.write_bytes(file.read_bytes()[:length])
    assert hits(load_small()) == 0
    assert "unreadable compiled code in" in caplog.text
    assert hits(load_small()) == 1


def test_a_read_only_package_keeps_its_code_in_the_users_cache(load_small, tmp_path):
    (tmp_path / "package" / "__pycache__").write_text("a file, so that no folder can be made")
    assert Path(load_small().stats.cache_path).is_relative_to(tmp_path / "cache")
    assert hits(load_small()) == 1


def test_without_any_cache_folder_code_is_kept_in_a_private_temporary_one(load_small, tmp_path):
    import numba

    (tmp_path / "package" / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    folder = Path(load_small().stats.cache_path)
    assert folder.is_relative_to(tmp_path / "temporary")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert hits(load_small()) == 1
    assert numba.config.CACHE_DIR == ""


def test_a_temporary_folder_that_others_can_write_is_not_trusted(load_small, tmp_path):
    (tmp_path / "package" / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    open_to_all = compiled._temporary_folder()
    open_to_all.chmod(0o777)
    used = Path(load_small().stats.cache_path)
    assert used.is_relative_to(tmp_path / "temporary")
    assert not used.is_relative_to(open_to_all)


def test_without_any_folder_it_warns_and_works(load_small, tmp_path, monkeypatch, caplog):
    (tmp_path / "package" / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(compiled.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert load_small().stats.cache_path is None
    assert "every process compiles" in caplog.text
