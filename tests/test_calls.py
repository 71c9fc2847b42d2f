"""The journal under kill -9, and whose it is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssr_nb.calls import Journal, JournalClaim, Reply, Request, discard_journal
from ssr_nb.core import SSRError

WRITER = """
import asyncio, sys
from ssr_nb.calls import Journal, Reply, Request
async def main():
    with Journal(sys.argv[1]) as journal:
        for number in range(100_000):
            await asyncio.gather(*(journal.record(Request("p", "m", {"prompt": str(number)}, {}, index), Reply(f"{number}/{index}", "stop", 1, 1), 0.0) for index in range(4)))
            print(number, flush=True)
asyncio.run(main())
"""


def test_what_was_counted_survives_kill_9(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "calls.sqlite"], stdout=subprocess.PIPE, text=True)
    counted = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    counted += [int(line) for line in process.stdout.read().split()]
    with Journal(tmp_path / "calls.sqlite") as journal:
        for number in counted:
            for index in range(4): assert journal.get(Request("p", "m", {"prompt": str(number)}, {}, index)).text == f"{number}/{index}"


def test_the_key_is_all_that_shapes_the_answer_and_not_the_seed():
    base = Request("p", "m", {"prompt": "x"}, {"temperature": .5}, 0, seed=1)
    others = [Request("q", "m", {"prompt": "x"}, {"temperature": .5}), Request("p", "n", {"prompt": "x"}, {"temperature": .5}), Request("p", "m", {"prompt": "y"}, {"temperature": .5}),
              Request("p", "m", {"prompt": "x"}, {"temperature": .6}), Request("p", "m", {"prompt": "x"}, {"temperature": .5}, 1)]
    assert len({base.key, *(other.key for other in others)}) == 6
    assert base.key == Request("p", "m", {"prompt": "x"}, {"temperature": .5}, 0, seed=2).key


def test_equal_surveys_at_once_take_a_journal_each(tmp_path):
    with JournalClaim(tmp_path, "s") as one, JournalClaim(tmp_path, "s") as two: assert one.path != two.path
    with JournalClaim(tmp_path, "s") as again: assert again.path == one.path


def test_a_finished_journal_is_resumed_until_it_is_saved(tmp_path, monkeypatch):
    with JournalClaim(tmp_path, "s") as one: one.finish()
    with JournalClaim(tmp_path, "s") as again:  # the same process: a cell that is run again
        assert again.path == one.path
        again.finish()
    monkeypatch.setenv("SSR_JOB_PID", str(os.getppid()))  # another job, while the first one saves
    with JournalClaim(tmp_path, "s") as other: assert other.path != one.path
    monkeypatch.delenv("SSR_JOB_PID")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    one.path.with_suffix(".saving").write_text(str(gone.pid))  # the first job was killed before it had saved
    with JournalClaim(tmp_path, "s") as resumed: assert resumed.path == one.path
    discard_journal(one.path)
    assert not list(tmp_path.glob("s-0*"))


HOLDER = "import sys, time\nfrom ssr_nb.calls import JournalClaim\nwith JournalClaim(sys.argv[1], 's') as claim: print(claim.path, flush=True); time.sleep(60)"


def test_the_kernel_of_a_killed_job_is_waited_for(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True, env={**os.environ, "SSR_JOB_PID": str(gone.pid)})
    path = Path(holder.stdout.readline().strip())
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"])
    started = time.monotonic()
    with JournalClaim(tmp_path, "s") as claim: assert claim.path == path
    assert time.monotonic() - started > .5
    holder.wait()


def test_a_living_holder_is_not_waited_for(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    path = Path(holder.stdout.readline().strip())
    with JournalClaim(tmp_path, "s") as claim: assert claim.path != path
    holder.send_signal(signal.SIGKILL)
    holder.wait()


def test_a_journal_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SSRError, match="cannot be written"): Journal(tmp_path / "file" / "calls.sqlite")


def test_a_full_disk_fails_the_answer_and_keeps_the_others(tmp_path):
    async def record():
        with Journal(tmp_path / "calls.sqlite") as journal:
            await journal.record(Request("p", "m", {"prompt": "kept"}, {}), Reply("yes", "stop", 1, 1), None)
            journal._connection.execute("PRAGMA max_page_count = 1")  # SQLite's own 'database or disk is full'
            with pytest.raises(SSRError, match="free space"):
                for number in range(50): await journal.record(Request("p", "m", {"prompt": str(number)}, {}), Reply("y" * 5000, "stop", 1, 1), None)
    asyncio.run(record())
    with Journal(tmp_path / "calls.sqlite") as journal: assert journal.get(Request("p", "m", {"prompt": "kept"}, {})).text == "yes"
