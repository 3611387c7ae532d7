"""A local server that speaks S3, for tests: its address is in the environment while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def object_store(bucket: str) -> Iterator[Any]:
    """A file system of s3fs at a new server that has ``bucket``. File systems of an earlier server are forgotten.

    A session of Ray that is open is closed: its workers would not see the address.
    """
    import ray
    import s3fs
    from moto.server import ThreadedMotoServer

    ray.shutdown()

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            store = s3fs.S3FileSystem(skip_instance_cache=True)
            store.mkdir(bucket)
            yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
