"""Reading torchrun's logs, as torch 2.15 writes them."""

from datetime import UTC, datetime

from everstep_operator.reconcile.torchrun import Summary, last_error, last_line, read_summary, unstamped

SUMMARY = """\
E0101 12:00:00.000000 1 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: -9) local_rank: 0 (pid: 42) of binary: /usr/bin/python3
Traceback (most recent call last):
  File "/usr/local/bin/torchrun", line 7, in <module>
    sys.exit(main())
  File "torch/distributed/launcher/api.py", line 300, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Failures:
  <NO_OTHER_FAILURES>
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_12:00:00
  host      : job-1-1
  rank      : 1 (local_rank: 0)
  exitcode  : -9 (pid: 42)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 42
============================================================
"""  # noqa: E501

IMPORT = """\
Traceback (most recent call last):
  File "/app/train.py", line 3, in <module>
    import missing_module
ModuleNotFoundError: No module named 'missing_module'
"""


def test_the_root_cause_of_a_summary() -> None:
    assert read_summary(SUMMARY) == Summary(1, -9)
    assert read_summary(SUMMARY.replace("-9", "3").replace("Signal 9 (SIGKILL) received by PID 42", "To enable …")) == (
        Summary(1, 3)
    )


def test_the_agents_own_line_serves_where_the_summary_is_missing() -> None:
    assert read_summary(SUMMARY.splitlines()[0]) == Summary(None, -9)


def test_no_summary() -> None:
    assert read_summary(None) is None
    assert read_summary("step 1\nstep 2") is None
    assert read_summary("Root Cause (first observed failure):\n cut short") is None


def test_the_last_traceback_that_is_not_torchruns() -> None:
    wanted = "ModuleNotFoundError: No module named 'missing_module'"
    assert last_error(IMPORT + SUMMARY) == wanted
    ranked = "".join(f"[rank0]: {line}\n" for line in IMPORT.splitlines())
    assert last_error(ranked + SUMMARY) == wanted
    assert last_error(SUMMARY) is None
    assert last_error(None) is None


def test_what_python_ignores_is_no_cause() -> None:
    ignored = (
        "Exception ignored in: <_io.BytesIO object>\nTraceback (most recent call last):\n  File x\nBufferError: held\n"
    )
    assert last_error(IMPORT + ignored) == "ModuleNotFoundError: No module named 'missing_module'"
    assert last_error(ignored + IMPORT) == "ModuleNotFoundError: No module named 'missing_module'"


def test_a_script_that_does_not_parse() -> None:
    log = '  File "/app/train.py", line 3\n    def\n       ^\nSyntaxError: invalid syntax\n'
    assert last_error(log) == "SyntaxError: invalid syntax"


def test_the_last_line_that_says_anything() -> None:
    assert last_line("a\n  config.yaml: no such file  \n=====\n\n") == "config.yaml: no such file"
    assert last_line("") is None


def test_the_stamps_of_the_container_runtime_tell_when_a_worker_failed() -> None:
    lines = ["cut off here", *SUMMARY.splitlines(), "done"]
    stamps = [f"2026-01-01T12:00:{second:02}.123456789Z " for second in range(len(lines))]
    stamped = "\n".join([lines[0], *(stamp + line for stamp, line in zip(stamps[1:], lines[1:], strict=True))])
    text, failed = unstamped(stamped)
    assert text == "\n".join(lines)
    assert failed == datetime(2026, 1, 1, 12, 0, 1, 123456, tzinfo=UTC)
    assert unstamped("") == ("", None)
    assert unstamped("2026-99-01T12:00:00Z failed (exitcode: -9)")[1] is None
