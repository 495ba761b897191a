"""The front door: help, exit codes, one-line errors."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import orrery

ROOT = Path(__file__).parents[1]


MISSING_PACKAGE = "orrery: open3d is not installed; pip install 'orrery[recon3d]'\n"


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        orrery.main(words)
    return int(stop.value.code or 0)


def probe_command(monkeypatch, function):
    """Put a function in the place of a command, as a room's module would hold it."""
    module = type(sys)("room_for_tests")
    module.command = function
    monkeypatch.setitem(sys.modules, "room_for_tests", module)
    monkeypatch.setitem(
        orrery.COMMANDS, "trial", orrery.Command("room_for_tests:command", "a trial", "orrery trial")
    )


def test_help_shows_every_command_with_an_example(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    for name, command in orrery.COMMANDS.items():
        assert name in said and command.summary in said and command.example in said


def test_help_imports_no_room():
    code = "import sys, orrery\ntry: orrery.main(['--help'])\nexcept SystemExit: pass\n"
    rooms = ("torch", "simulator", "envs", "recon3d", "probes")
    code += f"print([m for m in sys.modules if m.split('.')[0] in {rooms}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", [name for name in orrery.COMMANDS if name != "ns"])
def test_every_command_has_help(name, capsys):
    assert call(*name.split(), "--help") == 0
    assert f"usage: orrery {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["recrod"], "did you mean `orrery record`"),
        (["train", "wolrd"], "did you mean `orrery train world`"),
        (["xyzzy"], "orrery --help"),
    ],
)
def test_an_unknown_command_gets_one_line_and_a_suggestion(words, expected, capsys):
    assert call(*words) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--speed", "fast"], ["--speed", "1", "--sped", "2"]])
def test_options_that_do_not_parse_give_one_line(words, capsys, monkeypatch):
    def command(speed: int) -> int:
        """Try.

        Args:
            speed: how fast.
        """
        return speed

    probe_command(monkeypatch, command)
    assert call("trial", *words) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "--speed" in said + "--speed" * ("--sped" in said)
        and "orrery trial --help" in said
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("clip needs\n9 frames"), 2, "orrery: clip needs 9 frames\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.mp4"),
            2,
            "orrery: a.mp4: No such file or directory\n",
        ),
        (KeyboardInterrupt(), 130, "orrery: interrupted\n"),
        (
            KeyboardInterrupt("interrupted at step 7; --resume"),
            130,
            "orrery: interrupted at step 7; --resume\n",
        ),
        (
            ModuleNotFoundError("no", name="open3d"),
            2,
            "orrery: open3d is not installed; pip install 'orrery[recon3d]'\n",
        ),
    ],
)
def test_an_error_becomes_one_line_and_an_exit_code(error, code, line, capsys, monkeypatch):
    def command() -> int:
        """Try."""
        raise error

    probe_command(monkeypatch, command)
    assert call("trial") == code
    assert capsys.readouterr().err == line


def test_the_command_s_own_exit_code_is_the_process_s(monkeypatch):
    def command() -> int:
        """Try."""
        return 3

    probe_command(monkeypatch, command)
    assert call("trial") == 3


def test_a_defect_in_our_code_still_shows_its_traceback(monkeypatch):
    def command() -> int:
        """Try."""
        raise ZeroDivisionError

    probe_command(monkeypatch, command)
    with pytest.raises(ZeroDivisionError):
        orrery.main(["trial"])


def test_an_unknown_env_is_one_line(tmp_path, capsys):
    assert (
        call("rollout", "orrery/Nowhere-v0", "--policy", "random", "--episodes", "1", "--out", str(tmp_path))
        == 2
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Nowhere" in said


def test_targets_name_existing_functions():
    for command in orrery.COMMANDS.values():
        module, function = command.target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cuda"])
@pytest.mark.parametrize(
    "words",
    [
        "train tokenizer --data no --out no",
        "train world --data no --tokenizer no --out no",
        "train captioner --data no --tokenizer no --out no",
        "generate anything -o no.mp4",
        "eval default --data no",
        f"caption {ROOT}/notebooks/pictures/scaling.png",
        "bench",
    ],
)
def test_a_device_that_is_not_there_gives_one_line_before_any_work(words, device, capsys):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert call(*words.split(), "--device", device) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("orrery: --device ") and device in said
