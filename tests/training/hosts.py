"""Two hosts on one machine: network namespaces joined by a virtual cable, with an sshd in each. Needs root."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("ip", "unshare", "sshd", "ssh-keygen", "pdsh")
ADDRESSES = {"a": "10.77.0.1", "b": "10.77.0.2"}
INTERFACE = "mcsp0"

SSH_CONFIG = """Host *
  User root
  IdentityFile {folder}/id
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 5
  ServerAliveCountMax 2
"""
SSHD_CONFIG = """Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/id.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
"""


def missing() -> str:
    """What this machine lacks for :func:`two_hosts`; empty if nothing."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(name for name in NEEDED if find(name) is None)


def find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass(frozen=True)
class Hosts:
    """A folder with the hosts' configuration, and how to run something on one of them."""

    folder: Path
    tag: str

    def command(self, host: str, *command: str) -> list[str]:
        """``command`` on a host, with its own name, /etc/hosts, ssh configuration and network."""
        files = {"hosts": "/etc/hosts", "ssh_config": "/etc/ssh/ssh_config"}
        mounts = "; ".join(f"mount --bind {self.folder}/{name} {path}" for name, path in files.items())
        inside = f'hostname host{host}; {mounts}; mount -t tmpfs tmpfs /run; mkdir -p /run/sshd; exec "$@"'
        enter = [find("ip") or "ip", "netns", "exec", f"{self.tag}{host}", "unshare", "-m", "-u"]
        return [*enter, "bash", "-ec", inside, "bash", *command]


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """``hosta`` and ``hostb``, which can log in to each other as root; gone afterwards."""
    hosts = Hosts(folder, f"mcsp{os.getpid()}")
    for key in ("id", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    names = "".join(f"{address} host{name}\n" for name, address in ADDRESSES.items())
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + names)
    (folder / "hostfile").write_text("".join(f"host{name} slots=1\n" for name in ADDRESSES))
    daemons = []
    try:
        for name in ADDRESSES:
            ip("netns", "add", f"{hosts.tag}{name}")
            ip("-n", f"{hosts.tag}{name}", "link", "set", "lo", "up")
        ends = [f"{hosts.tag}{name}" for name in ADDRESSES]
        ip("link", "add", INTERFACE, "netns", ends[0], "type", "veth", "peer", "name", INTERFACE, "netns", ends[1])
        for name, address in ADDRESSES.items():
            ip("-n", f"{hosts.tag}{name}", "addr", "add", f"{address}/24", "dev", INTERFACE)
            ip("-n", f"{hosts.tag}{name}", "link", "set", INTERFACE, "up")
            sshd = [find("sshd") or "sshd", "-D", "-e", "-f", str(folder / "sshd_config")]
            daemons.append(subprocess.Popen(hosts.command(name, *sshd), stderr=subprocess.DEVNULL))
        for name in ADDRESSES:
            wait_for_login(hosts, name)
        yield hosts
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        for name in ADDRESSES:
            subprocess.run([find("ip") or "ip", "netns", "delete", f"{hosts.tag}{name}"], check=False)


def ip(*arguments: str) -> None:
    subprocess.run([find("ip") or "ip", *arguments], check=True)


def wait_for_login(hosts: Hosts, name: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while subprocess.run(hosts.command("a", "ssh", f"host{name}", "true"), check=False).returncode:
        assert time.monotonic() < deadline, f"no login to host{name} within {seconds} s"
        time.sleep(0.2)
