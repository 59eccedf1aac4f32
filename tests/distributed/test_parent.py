"""A command's process is outlived by its parent, which says what ended it: real processes, killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a parent that outlives a command needs Linux")

PROGRAM = """
import os, signal, subprocess, sys, time
from promptmm.distributed.parent import outlive, tell_parent

def command(words):
    print("words", *words, flush=True)
    {work}

sys.exit(outlive(command, sys.argv[1:]))
"""


def start(work: str, *words: str, before: str = "") -> subprocess.Popen:
    # Some runners of tests have signals ignored in what they start: Ctrl-C, or, as nohup does, the end of a terminal.
    default = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    program = default + before + PROGRAM.format(work=work.replace("\n", "\n    "))
    return subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen) -> tuple[int, list[str], str]:
    out, error = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), error


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_exit_code_is_the_commands(code):
    assert ended(start(f"return {code}", "a", "b=1")) == (code, ["words a b=1"], "")


def test_a_crash_after_the_command_returned_does_not_change_its_code():
    work = "import atexit\natexit.register(os.kill, os.getpid(), signal.SIGSEGV)\nreturn 0"
    assert ended(start(work))[0] == 0


def test_an_exception_is_printed_once_by_python_and_is_a_failure():
    code, _, error = ended(start("raise ValueError('wrong')"))
    assert code == 1
    assert error.count("ValueError: wrong") == 1
    assert "promptmm:" not in error


@pytest.mark.parametrize(("words", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no')", 1)])
def test_an_exit_has_its_code(words, code):
    assert ended(start(words))[0] == code


@pytest.mark.parametrize(
    ("end", "how"), [("os._exit(1)", "exit code 1"), ("os.kill(os.getpid(), 9)", "signal 9, SIGKILL"), ("os._exit(0)", "exit code 0")]
)
def test_an_end_without_a_word_is_said(end, how):
    code, out, error = ended(start(end))
    assert (code, len(out)) == (1, 1)
    assert f"the process of this command ended without a word ({how}); the same command" in error


def test_a_command_that_has_begun_starts_once_more_without_its_redo():
    work = "tell_parent('begun')\nos._exit(1)"
    code, out, error = ended(start(work, "pipeline", "run.redo=label", "a=1"))
    assert code == 1
    assert out == ["words pipeline run.redo=label a=1", "words pipeline a=1"]
    assert error.count("starts again by itself") == 1
    assert "ended without a word (exit code 1), once more; the same command" in error


def test_the_cause_that_was_told_is_said(tmp_path):
    mark = tmp_path / "mark"
    work = f"tell_parent('begun')\nif os.path.exists({str(mark)!r}): return 0\nopen({str(mark)!r}, 'w').close()\n"
    code, out, error = ended(start(work + "tell_parent('cause', 'the disk caught fire')\nos._exit(1)"))
    assert (code, len(out)) == (0, 2)
    assert error == "promptmm: the disk caught fire; the command starts again by itself, this once, and goes on from the last checkpoint\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_parent_reaches_the_command(number):
    process = start("time.sleep(60)")
    process.stdout.readline()
    process.send_signal(number)
    code, _, error = ended(process)
    assert code == 130
    assert error.count("promptmm: interrupted; the same command") == 1


def test_an_ignored_signal_stays_ignored():
    process = start("time.sleep(1.5)\nreturn 0", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)\n")
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert ended(process)[0] == 0


def test_a_crash_while_a_command_ends_after_an_interrupt_is_an_interrupt():
    process = start(
        "tell_parent('begun')\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    os.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert [process.stdout.readline() for _ in range(2)][1] == "ready\n"
    process.send_signal(signal.SIGINT)
    code, out, error = ended(process)
    assert (code, out) == (130, [])
    assert error.startswith("promptmm: interrupted; the same command")


def test_an_interrupted_command_that_does_not_end_is_ended():
    before = "import promptmm.distributed.parent as parent\nparent.END_SECONDS = 0.5\n"
    process = start("signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)", before=before)
    assert [process.stdout.readline() for _ in range(2)][1] == "deaf\n"
    process.send_signal(signal.SIGINT)
    code, _, error = ended(process)
    assert code == 130
    assert "did not end within 1 s of the interrupt" in error or "did not end within 0 s" in error


def test_nothing_is_left_running():
    """A process of a process that has ended, one that asks not to be ended, and one in a session of its own."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    call = f"subprocess.Popen([sys.executable, '-c', {deaf!r}], stdout=subprocess.PIPE)"
    middle = f"import subprocess, sys; p = {call}; p.stdout.readline(); print(p.pid)"
    work = f"""print(subprocess.run([sys.executable, '-c', {middle!r}], stdout=subprocess.PIPE, text=True).stdout, end='', flush=True)
print(subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.readline()
return 0"""
    process = start(work)
    left = [psutil.Process(int(process.stdout.readline())) for _ in range(2)] if process.stdout.readline() else []
    process.stdin.write("go\n")
    code, _, _ = ended(process)
    assert code == 0
    assert len(left) == 2
    assert not psutil.wait_procs(left, timeout=5)[1]


def test_a_killed_parent_takes_the_command_with_it():
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)")
    process.stdout.readline()
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    assert not psutil.wait_procs([child], timeout=10)[1]
    assert os.getpid() != child.pid
