"""Encrypted connections: sslmode in DATABASE_URL, rediss:// in REDIS_URL."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from ssr_nb.service.database import make_engine, upgrade
from ssr_nb.service.processes import free_port, kill_process, start_process
from ssr_nb.service.queues import SMALL, depth, send
from ssr_nb.service.rates import RateLimits
from ssr_nb.service.servers import Postgres
from ssr_nb.service.settings import ServiceSettings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    "A certificate of its own for 127.0.0.1."
    if not shutil.which("openssl"): pytest.skip("SKIP: no openssl here")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, capture_output=True)
    return folder


DEBIAN = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.system
def test_sslmode_is_honoured(certificate, monkeypatch):
    if not (DEBIAN / "initdb").exists(): pytest.skip("SKIP: no PostgreSQL 15 here, and the one of the wheel speaks no TLS")
    monkeypatch.setenv("PG_BINDIR", str(DEBIAN))
    with Postgres() as server:
        upgrade(plain := server.database("ssr"))
        with make_engine(plain).connect() as connection: assert connection.scalar(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")) is False
        for mode in ("require", "verify-full"):
            with pytest.raises(sa.exc.OperationalError): make_engine(ServiceSettings.from_environment({"DATABASE_URL": f"{plain}?sslmode={mode}"}).database_url).connect()
        data = server.folder / "data"
        owner = data.stat()
        for name in ("cert.pem", "key.pem"):
            shutil.copy(certificate / name, data / name)
            os.chown(data / name, owner.st_uid, owner.st_gid)
            os.chmod(data / name, 0o600)
        with make_engine(plain).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for name, value in {"ssl": "on", "ssl_cert_file": "cert.pem", "ssl_key_file": "key.pem"}.items(): connection.execute(sa.text(f"ALTER SYSTEM SET {name} = '{value}'"))
        make_engine.cache_clear()
        server.restart()
        for more in ("sslmode=require", f"sslmode=verify-full&sslrootcert={certificate / 'cert.pem'}"):
            engine = make_engine(ServiceSettings.from_environment({"DATABASE_URL": f"{plain}?{more}"}).database_url)
            with engine.connect() as connection: assert connection.scalar(sa.text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")) is True
            engine.dispose()


@pytest.mark.system
def test_rediss_is_honoured(certificate, tmp_path):
    import redis
    if not shutil.which("redis-server"): pytest.skip("SKIP: no redis-server here, and the one of the wheel speaks no TLS")
    port = free_port()
    process = start_process(["redis-server", "--port", "0", "--tls-port", str(port), "--tls-cert-file", certificate / "cert.pem", "--tls-key-file", certificate / "key.pem", "--tls-ca-cert-file", certificate / "cert.pem", "--tls-auth-clients", "no", "--requirepass", "secret", "--save", ""], tmp_path / "redis.log")
    try:
        url = f"rediss://:secret@127.0.0.1:{port}/0"
        settings = ServiceSettings.from_environment({"DATABASE_URL": "postgresql://ssr@127.0.0.1/ssr", "REDIS_URL": f"{url}?ssl_ca_certs={certificate / 'cert.pem'}"})
        client = redis.Redis.from_url(settings.redis_url)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try: client.ping(); break
            except redis.ConnectionError: time.sleep(.1)
        assert send(settings, "ssr.advance", "some survey", queue=SMALL) and depth(client)[SMALL] == 1
        assert RateLimits(settings).of_key("somebody").remaining == 59
        unknown = ServiceSettings.from_environment({"DATABASE_URL": "postgresql://ssr@127.0.0.1/ssr", "REDIS_URL": url})
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"): redis.Redis.from_url(unknown.redis_url).ping()
        alone = "from ssr_nb.service.queues import SMALL, send; from ssr_nb.service.settings import ServiceSettings; print(send(ServiceSettings.from_environment(), 'ssr.advance', 'some survey', queue=SMALL))"  # kombu shares connections within a process
        for given, taken in ((settings, "True"), (unknown, "False")):
            said = subprocess.run([sys.executable, "-c", alone], env={**os.environ, "DATABASE_URL": "postgresql://ssr@127.0.0.1/ssr", "REDIS_URL": given.redis_url}, capture_output=True, text=True)
            assert said.stdout.strip() == taken, said.stderr
    finally: kill_process(process)
