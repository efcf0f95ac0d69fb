"""Two hosts, made of namespaces and joined by a link that can be cut: `make test-hosts`.

Each has its own network, processes, name, shared memory and sshd; the files are the same, as in a
shared folder.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import OPEN_MPI, ROOT, rank_environment
from tests.test_resume import RUNS, assert_equal, launch

pytestmark = [pytest.mark.cluster, pytest.mark.mpi]

FLAGS = ("--num-timesteps", "6000", "--stall-timeout", "5")
ADDRESSES = {"alpha": "10.213.0.1", "beta": "10.213.0.2"}

START_HOST = """
set -e
hostname {name}
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t sysfs sysfs /sys   # lists this network's interfaces
mount --bind hosts /etc/hosts
mount --bind ssh_config /etc/ssh/ssh_config
exec {sshd} -D -e -f sshd_config
"""
SSH_CONFIG = """
Host alpha beta
    ServerAliveInterval 5
    IdentityFile {folder}/key
    UserKnownHostsFile {folder}/known_hosts
"""
SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
PasswordAuthentication no
"""


class Host:
    """A machine of its own, as far as MPI can tell.

    Attributes:
        init: id of its first process; all others end with it.
    """

    def __init__(self, name: str, folder: Path) -> None:
        script = START_HOST.format(name=name, sshd=shutil.which("sshd", path=PATH))
        with open(folder / f"{name}.log", "w") as log:
            self.unshare = subprocess.Popen(
                ["unshare", "--net", "--ipc", "--uts", "--mount", "--pid", "--mount-proc",
                 "--fork", "--kill-child", "sh", "-c", script], cwd=folder, stderr=log,
            )  # fmt: skip
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
        wait_until(lambda: children.read_text())
        self.init = int(children.read_text())

    def enter(self, *command: str, **options) -> subprocess.Popen:
        """Start a command on this host, in the working directory `cwd`."""
        enter = ["nsenter", "--target", str(self.init), "--all", f"--wd={options['cwd']}"]
        return subprocess.Popen([*enter, *command], stdin=subprocess.DEVNULL, **options)

    def link(self, *command: str) -> None:
        """Run `ip` in this host's network."""
        enter = ["nsenter", "--target", str(self.init), "--net"]
        subprocess.run([*enter, "ip", *command], check=True)

    def received(self) -> int:
        """Return the bytes that have come in over the link."""
        lines = Path(f"/proc/{self.init}/net/dev").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if "link0" in line)

    def processes(self) -> dict[int, str]:
        """Return the command lines of a job's processes here, by their ids outside."""
        own = os.readlink(f"/proc/{self.init}/ns/pid")
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns" / "pid") == own:
                    found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            except OSError:  # ended in the meantime
                continue
        return {pid: line for pid, line in found.items() if line and not line.startswith("sshd")}

    def stop(self) -> None:
        self.unshare.kill()
        self.unshare.wait()


PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def wait_until(condition, seconds=30.0):
    """Return the seconds until `condition` was true; fail after too many."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not after {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def skip_unless_possible():
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    for program in ("unshare", "nsenter", "ip", "ssh", "sshd", "ssh-keygen"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"there is no {program}")
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.decode().strip()}")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Return two linked hosts, between which ssh works without a password."""
    skip_unless_possible()
    folder = tmp_path_factory.mktemp("hosts")
    for name in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name]
        subprocess.run(command, cwd=folder, check=True)
    lines = [f"{address} {name}\n" for name, address in ADDRESSES.items()]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    (folder / "known_hosts").write_text("alpha,beta " + (folder / "host_key.pub").read_text())
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    started = []
    try:
        for name in ADDRESSES:
            started.append(Host(name, folder))
        alpha, beta = started
        alpha.link("link", "add", "link0", "type", "veth", "peer", "link0", "netns", str(beta.init))
        for host, address in zip(started, ADDRESSES.values(), strict=True):
            host.link("address", "add", f"{address}/24", "dev", "link0")
            host.link("link", "set", "lo", "up")
            host.link("link", "set", "link0", "up")
        for name in ADDRESSES:
            ssh = ["ssh", name, "true"]
            wait_until(lambda ssh=ssh: alpha.enter(*ssh, cwd=folder).wait() == 0)
        yield alpha, beta
    finally:
        for host in started:
            host.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run on two ranks of one host that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    launch(2, "hopper", *FLAGS, "--log-path", "run", folder=folder)
    return folder / "run"


def start(host, *flags, folder):
    """Start a run of a rank on each host; its output goes to the files `out` and `err`."""
    lines = "alpha slots=1\nbeta slots=1\n" if OPEN_MPI else "alpha:1\nbeta:1\n"
    (folder / "hosts").write_text(lines)
    hostfile = "--hostfile" if OPEN_MPI else "-f"
    script, *rest = RUNS["hopper"]
    command = ["mpirun", hostfile, "hosts", "-np", "2", sys.executable, str(ROOT / script), *rest]
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        # In tests Open MPI is told to oversubscribe, whereupon it fills the first host alone
        environment = rank_environment(PRTE_MCA_rmaps_default_mapping_policy="node")
        options = dict(stdout=out, stderr=err, cwd=folder, env=environment)
        return host.enter(*command, *flags, "--log-path", "run", **options)


def test_two_hosts_train_as_one_does(hosts, whole, tmp_path):
    alpha, beta = hosts
    before = alpha.received(), beta.received()
    process = start(alpha, *FLAGS, folder=tmp_path)
    assert process.wait(timeout=90) == 0, (tmp_path / "err").read_text()
    assert_equal(tmp_path / "run", whole)
    # Some 11,000 float32 an update went each way: no shared memory joined the two
    assert alpha.received() - before[0] > 3e6
    assert beta.received() - before[1] > 3e6


def cut_link(alpha, beta):
    alpha.link("link", "set", "link0", "down")


def kill_rank(alpha, beta):
    (pid,) = [pid for pid, line in beta.processes().items() if line.startswith(sys.executable)]
    os.kill(pid, 9)


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        (cut_link, 5 + 1 + 5 + 9, "rank 0 of 2: no progress for 5 s, ending the job"),
        (kill_rank, 9, ""),
    ],
)
def test_a_lost_host_ends_the_job_which_resumes_on_the_other(
    fault, seconds, message, hosts, whole, tmp_path
):
    alpha, beta = hosts
    process = start(alpha, *FLAGS, folder=tmp_path)
    wait_until(lambda: "Iteration 4 " in (tmp_path / "out").read_text())
    try:
        fault(alpha, beta)
        took = wait_until(lambda: process.poll() is not None)
        print(f"{fault.__name__}: the job ended after {took:.1f} s, exit code {process.returncode}")
        assert process.returncode != 0
        assert took < seconds  # the watchdog's time, its tick, its grace for mpirun, and some
        assert message in (tmp_path / "err").read_text()
        took = wait_until(lambda: not alpha.processes() | beta.processes())
        print(f"{fault.__name__}: nothing was left of it {took:.1f} s later")
    finally:
        alpha.link("link", "set", "link0", "up")
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    done = launch(2, "hopper", *FLAGS, "--resume", "run", folder=tmp_path)
    assert ", exactly" in done.stdout
    assert_equal(tmp_path / "run", whole)
    done = launch(0, "hopper", *FLAGS, "--resume", "one", folder=tmp_path)
    assert "number of ranks now 1 instead of 2: not exactly" in done.stdout
