"""A real PostgreSQL server on loopback for a test, from the system's programs; as root it runs as the user postgres.

with postgres(tmp_path_factory.mktemp("postgres")) as url:
    ...
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge import free_port


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of its database, once it lets people in."""
    data, port = folder / "data", free_port()
    become = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    data.mkdir()
    if become:
        for path in (data, *data.parents):
            if path.stat().st_uid == 0 and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o011)
        shutil.chown(data, "postgres")
    initdb, server = (shutil.which(name) or name for name in ("initdb", "postgres"))
    subprocess.run([*become, initdb, "-D", str(data), "-U", "hicmae", "--auth=trust", "-N"], check=True, capture_output=True)
    options = ["-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    process = subprocess.Popen([*become, server, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"postgresql://hicmae@127.0.0.1:{port}/postgres"
    try:
        _wait_for(url, port)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_for(url: str, port: int) -> None:
    import psycopg

    for _ in range(600):
        with socket.socket() as client:
            listens = client.connect_ex(("127.0.0.1", port)) == 0
        try:
            if listens:  # before it lets anybody in
                psycopg.connect(url).close()
                return
        except psycopg.OperationalError:
            pass
        time.sleep(0.1)
    raise AssertionError("PostgreSQL does not let anybody in")
