"""Checkpoints: another run's, damaged ones, and foreign files."""

from __future__ import annotations

import pytest
import torch

from featpipe.errors import FitError
from featpipe.finetune.callbacks import read_checkpoint, write_checkpoint


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, "one", {"module": {}}, [{"epoch": 1}])
    assert read_checkpoint(path, "one")[1] == [{"epoch": 1}]
    with pytest.raises(FitError, match="another run") as caught:
        read_checkpoint(path, "two")
    assert "rm " in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")


@pytest.mark.parametrize("content", [[1], 7, torch.zeros(2), {"run": "r", "history": 5}])
def test_another_file_of_torch_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "c"
    torch.save(content, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "r")


def test_foreign_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "c"
    torch.save({"run": "run", "format": 1, "history": Evil()}, path)
    with pytest.raises(FitError, match="damaged"):
        read_checkpoint(path, "run")
    assert not (tmp_path / "ran").exists()
