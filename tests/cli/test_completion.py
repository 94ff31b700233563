"""`scvi-lfm --completion SHELL`: a script by which that shell completes commands, options and files."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from scvi_lfm._cli import main
from scvi_lfm._cli._completion import SHELLS, completion_script
from scvi_lfm._cli._parser import build_parser


def script(shell: str) -> str:
    return completion_script(build_parser(), shell)


def run(shell: str, code: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_prints_the_script_and_ends(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--completion", shell])
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert captured.out == script(shell) + "\n"
    assert captured.err == ""
    for word in ("anomalies", "groupby", "negative_binomial", "completion"):
        assert word in captured.out


def test_shells_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "ksh"]) == 2
    assert "invalid choice: 'ksh'" in capsys.readouterr().err


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--completion", "bash"]) == 2
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["an"], {"anomalies"}),
        (["rank", "--gro"], {"--groupby", "--groups"}),
        (["fit", "--likelihood", "n"], {"normal", "negative_binomial"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str]) -> None:
    words = ["scvi-lfm", *words]
    code = (
        f"{script('bash')}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_shtab_scvi_lfm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert set(run("bash", code)) == expected


def test_zsh_takes_the_script() -> None:
    code = "autoload -Uz compinit && compinit -D -u\n" + f"eval {quoted(script('zsh'))}\nprint ${{_comps[scvi-lfm]}}"
    assert run("zsh", code) == ["_shtab_scvi_lfm"]


@pytest.mark.parametrize(("line", "expected"), [("an", {"anomalies"}), ("fit --likelihood no", {"normal"})])
def test_fish_completes(line: str, expected: set[str]) -> None:
    found = run("fish", f"{script('fish')}\ncomplete --do-complete 'scvi-lfm {line}' | string split -f1 \\t")
    assert set(found) == expected


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
