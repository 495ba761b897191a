"""Control steps in compiled code: the same dreams, by code that is made once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config as inductor

from simulator.compiled import alike
from simulator.world_model import WorldModel


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_steps_dream_the_same_by_code_that_is_made_once():
    command = [sys.executable, str(Path(__file__).with_name("compiled_steps.py"))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["away"] <= 1, "to one grey level: sums are taken in another order"
    assert found["moves"] > 3
    assert found["graphs"] == 2, "the network's and the decoder's, whatever is remembered or was said"


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match="found none; install"):
        WorldModel.load().compiled()


def test_a_row_that_was_cut_out_or_read_back_is_of_one_kind_with_a_fresh_one():
    read = torch.ones(1, 2, 4)
    with torch.inference_mode():
        fresh, cut = torch.ones(1, 2, 4), torch.ones(1, 3, 4)[:, 1:]
        assert cut.is_contiguous() and cut.stride() != fresh.stride() and not read.is_inference()
        for given in alike((fresh, cut, read)):
            assert given.stride() == fresh.stride() and given.is_inference() and given.equal(fresh)
