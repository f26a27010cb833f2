"""The programs that the servers are made of: where they are, and the command that gets a missing one.

Debian's packages need an administrator. What does not, Kafka's jars and the S3 server, is fetched once into a cache folder of the
user, which all checkouts share.
"""

import fcntl
import glob
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

INSTALL = "make servers-install"
POMS = Path(__file__).parent / "poms"
POSTGRES = "/usr/lib/postgresql/*/bin"  # where Debian puts it, outside PATH
CARGO = Path.home() / ".cargo" / "bin"
S3S_FS = "0.14.1"


class Missing(Exception):
    """A part that is not on this machine; `command` gets it."""

    def __init__(self, part: str, command: str) -> None:
        super().__init__(f"{part} is missing; get it with: {command}")
        self.part, self.command = part, command


def debian(package: str) -> str:
    """The command that installs a package of Debian or Ubuntu."""
    return f"apt-get install -y --no-install-recommends {package}"


def program(name: str, part: str, command: str, *places: str | Path) -> Path:
    """Find a program in PATH or in one of `places`, or raise `Missing`."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, places)])
    where = shutil.which(name, path=path)
    if where is None:
        raise Missing(part, command)
    return Path(where)


def java() -> Path:
    return program("java", "Java 17", debian("openjdk-17-jre-headless"))


def redis() -> Path:
    return program("redis-server", "Redis", debian("redis-server"))


def postgres(name: str) -> Path:
    newest_first = sorted(glob.glob(POSTGRES), key=lambda place: int(place.split("/")[-2]), reverse=True)
    return program(name, "PostgreSQL", debian("postgresql"), *newest_first)


def s3() -> Path:
    binary = cache() / f"s3s-fs-{S3S_FS}" / "bin" / "s3s-fs"
    if not binary.is_file():
        raise Missing("the S3 server s3s-fs", INSTALL)
    return binary


def jars(name: str) -> Path:
    """The folder of the jars that the pom in `poms/NAME` asks for."""
    if not (folder := _jars(name)).is_dir():
        raise Missing(f"the folder with the jars of {name}", INSTALL)
    return folder


def _jars(name: str) -> Path:
    """Where the jars belong: another pom means another folder."""
    return cache() / f"{name}-{hashlib.sha256((POMS / name / 'pom.xml').read_bytes()).hexdigest()[:12]}"


def cache() -> Path:
    """The folder of this user in which all checkouts share what was fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpkg" / "servers"


def install() -> list[Missing]:
    """Fetch what needs no administrator, and return what is still missing."""
    missing = []
    for name in sorted(pom.parent.name for pom in POMS.glob("*/pom.xml")):
        missing += _got(f"the jars of {name}", lambda name=name: jars(name), lambda name=name: _fetch_jars(name))
    missing += _got("s3s-fs", s3, _build_s3)
    for find in (java, redis, lambda: postgres("postgres")):
        missing += _got("", find, None)
    return missing


def _got(what: str, find: Callable[[], Path], get: Callable[[], None] | None) -> list[Missing]:
    """Get a part that is not there; return it where that is not possible."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second of two checkouts waits, and finds what the first one fetched
        try:
            find()
        except Missing as missing:
            if get is None:
                return [missing]
            print(f"servers-install: getting {what}", flush=True)
            try:
                get()
            except Missing as needed:
                return [needed]
            except subprocess.CalledProcessError as error:
                return [Missing(f"{what} ({Path(error.cmd[0]).name} failed, its last lines say why)", INSTALL)]
        return []


def _fetch_jars(name: str) -> None:
    mvn = program("mvn", "Maven", debian("maven"))
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        shutil.copy(POMS / name / "pom.xml", folder)
        goal = ["dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"]
        subprocess.run([mvn, "-q", "-B", *goal], cwd=folder, check=True, stdin=subprocess.DEVNULL)
        os.rename(Path(folder) / "jars", _jars(name))  # whole, or not at all


def _build_s3() -> None:
    cargo = program("cargo", "Rust 1.85 or newer (cargo)", "apt-get install -y rustup && rustup default stable", CARGO)
    options = ["--quiet", "--locked", "--features", "binary"]
    subprocess.run(
        [cargo, "install", *options, "--root", cache() / f"s3s-fs-{S3S_FS}", f"s3s-fs@{S3S_FS}"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
