"""What is left of memory, as a Linux system tells it, and as words."""

from __future__ import annotations

import pytest

from scvi_lfm import _memory
from scvi_lfm._memory import available_bytes, words_of_bytes

MACHINE = "MemTotal:  16000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n"


@pytest.fixture
def system(monkeypatch):
    """Set the files that a system has, by path."""
    files: dict[str, str] = {}
    monkeypatch.setattr(_memory, "_text", lambda path: files.get(str(path), ""))
    return files


def test_it_is_not_known_where_nothing_tells(system):
    assert available_bytes() is None


def test_it_is_what_the_machine_has(system):
    system["/proc/meminfo"] = MACHINE
    assert available_bytes() == 8_000_000 * 1024


def test_a_group_may_have_less_and_files_that_it_read_do_not_count(system):
    system["/proc/meminfo"], system["/proc/self/cgroup"] = MACHINE, "0::/jobs/one\n"
    system["/sys/fs/cgroup/jobs/one/memory.max"] = "max\n"
    system["/sys/fs/cgroup/jobs/one/memory.current"] = "5000\n"
    assert available_bytes() == 8_000_000 * 1024
    system["/sys/fs/cgroup/jobs/memory.max"] = "9000\n"
    system["/sys/fs/cgroup/jobs/memory.current"] = "6000\n"
    system["/sys/fs/cgroup/jobs/memory.stat"] = "anon 5000\ninactive_file 700\n"
    assert available_bytes() == 3700


def test_groups_of_the_first_version(system):
    system["/proc/meminfo"] = MACHINE
    system["/proc/self/cgroup"] = "7:cpu,cpuacct:/a\n4:memory:/a\n0::/\n"
    system["/sys/fs/cgroup/memory/a/memory.limit_in_bytes"] = "9000"
    system["/sys/fs/cgroup/memory/a/memory.usage_in_bytes"] = "6000"
    assert available_bytes() == 3000


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(10, "0 kB"), (15_300, "15 kB"), (2.5e6, "2.5 MB"), (340.4e6, "340 MB"), (1.26e9, "1.3 GB"), (4e15, "4,000 TB")],
)
def test_words(n_bytes, words):
    assert words_of_bytes(n_bytes) == words
