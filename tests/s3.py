"""A server that speaks S3, for tests that need a bucket: see ``tests/s3_server.py``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from shifter.store import Store


@dataclass(frozen=True)
class Server:
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a process sets that is to use it, and no settings of whoever runs the tests."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def play(self, **how: Any) -> None:
        """How it behaves from now on, see ``s3_server.Misbehaving``; without arguments, well."""
        with urlopen(Request(f"{self.url}/_play", json.dumps(how).encode())) as answer:
            answer.read()

    def done(self) -> dict[str, int]:
        """Requests by verb and by fault, and bytes read, since it was told how to play."""
        with urlopen(f"{self.url}/_play") as answer:
            counted: dict[str, int] = json.load(answer)
        return counted

    def bucket(self) -> str:
        """A new one."""
        from shifter.s3 import request

        name = f"tests-{uuid.uuid4().hex}"
        request("create_bucket", Bucket=name)
        return name


@contextmanager
def serving() -> Iterator[Server]:
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto[server], which is in the extra 'dev'")
    script = Path(__file__).with_name("s3_server.py")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


def everything(store: Store) -> list[str]:
    """All that lies in a store, keys or not."""
    from shifter.folder import Folder

    if isinstance(store.place, Folder):
        root = store.place.root
        return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
    from shifter.bucket import Bucket
    from shifter.s3 import request

    place = store.place
    assert isinstance(place, Bucket)
    objects = request("list_objects_v2", Bucket=place.bucket, Prefix=place.prefix).get("Contents", [])
    uploads = request("list_multipart_uploads", Bucket=place.bucket).get("Uploads", [])
    names = [found["Key"].removeprefix(place.prefix) for found in objects]
    return sorted(names + [f"{found['Key']} (in parts)" for found in uploads])
