#!/usr/bin/env bash
# A Docker engine for the tests on a Debian machine that has none.
# shellcheck disable=SC2016 # what stands in single quotes is for other programs
set -euo pipefail
help() { cat <<'TEXT'
engine.sh up|base|standins|env|down
The engine comes from Debian's packages, unpacked into a folder of its own (ENGINE_DIR): nothing of this system is changed, neither its packages nor its firewall,
so containers reach each other and this machine, and nothing beyond. Needs root, mmdebstrap and iptables.
  up        start the engine, unpacking it first if it is not there
  base      an image python:3.12-slim-bookworm from Debian's archive and a Python 3.12 of this machine (PYTHON312)
  standins  images ssr-test/… of what the vendors' images hold, from Debian's packages: they prove our wiring, not the vendors' images
  env       what points docker to this engine: eval "$(tests/docker/engine.sh env)"
  down      stop it; what it keeps stays in ENGINE_DIR
Exit codes: 0 done, 1 it could not be, 2 wrong use.
Example: tests/docker/engine.sh up && eval "$(tests/docker/engine.sh env)" && docker version
TEXT
}
here=$(cd "$(dirname "$0")" && pwd)
folder=${ENGINE_DIR:-${TMPDIR:-/tmp}/ssr-test-engine}
release=${ENGINE_RELEASE:-trixie}
DOCKER_HOST=unix://$folder/docker.sock DOCKER_CONFIG=$folder/client PATH=$folder/system/usr/bin:$folder/system/usr/sbin:$PATH
export DOCKER_HOST DOCKER_CONFIG PATH
fail() { echo "engine.sh: $1" >&2; exit 1; }

unpack() {
  local archive
  archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1 || true)
  [ -n "$archive" ] || fail "apt knows no archive of Debian"
  mkdir -p "$folder"/{packages,system,client/cli-plugins,apt/lists/partial,apt/cache/archives/partial}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $release main" > "$folder/apt/sources.list"
  cat > "$folder/apt/apt.conf" <<TEXT
Dir::Etc::sourcelist "$folder/apt/sources.list";
Dir::Etc::sourceparts "/nonexistent";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$folder/apt/cache";
APT::Sandbox::User "root";
TEXT
  # this system's own runc: a newer one wants a newer C library
  (cd "$folder/packages" && APT_CONFIG=$folder/apt/apt.conf apt-get update -qq && APT_CONFIG=$folder/apt/apt.conf apt-get download -qq docker.io containerd docker-buildx && apt-get download -qq runc tini)
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder/system"; done
  ln -sf tini "$folder/system/usr/bin/docker-init"
  cp "$folder/system/usr/libexec/docker/cli-plugins/docker-buildx" "$folder/client/cli-plugins/"
}

up() {
  [ "$(id -u)" = 0 ] || fail "only root can start an engine"
  docker version > /dev/null 2>&1 && return
  [ -x "$folder/system/usr/sbin/dockerd" ] || unpack
  mkdir -p "$folder/data" "$folder/exec"
  nohup "$folder/system/usr/sbin/dockerd" --host "$DOCKER_HOST" --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/docker.pid" --storage-driver overlay2 \
    --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --default-ulimit nofile=4096:4096 > "$folder/docker.log" 2>&1 < /dev/null &
  for _ in $(seq 200); do docker version > /dev/null 2>&1 && return; sleep .2; done
  fail "the engine did not start: $(tail -n 3 "$folder/docker.log")"
}

base() {
  local python=${PYTHON312:-python3.12} prefix shrink='--exclude=__pycache__ --exclude=*.a --exclude=lib/python3.12/test --exclude=lib/python3.12/config-* --exclude=share'
  "$python" -c '' 2> /dev/null || { PYENV_VERSION=$(pyenv versions --bare 2> /dev/null | grep '^3\.12' | tail -n 1 || true); export PYENV_VERSION; }
  prefix=$("$python" -c 'import sys; print(sys.base_prefix)' 2> /dev/null) || fail "no Python 3.12 here: name one in PYTHON312"
  mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include=ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,libreadline8,zlib1g,libncursesw6,libexpat1,libuuid1 \
    --customize-hook="tar -C '$prefix' $shrink -cf - bin lib include | tar -C \"\$1/usr/local\" -xf -" \
    --customize-hook='sed -i "1s|.*|#!/usr/local/bin/python3.12|" "$1"/usr/local/bin/pip*; chroot "$1" ldconfig' \
    --customize-hook='copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs' \
    --customize-hook='printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" > "$1/etc/pip.conf"' bookworm - |
    docker import --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' --change 'CMD ["python3"]' - python:3.12-slim-bookworm > /dev/null
}

standins() {
  for target in postgres redis nginx prometheus alertmanager pgbouncer postgres-exporter redis-exporter nginx-exporter node-exporter; do
    docker buildx build --quiet --network=host --load --target "$target" --file "$here/standins.Dockerfile" --tag "ssr-test/$target" "$here" > /dev/null
  done
}

down() {
  [ -f "$folder/docker.pid" ] || return 0
  kill "$(cat "$folder/docker.pid")"
  for _ in $(seq 100); do [ -f "$folder/docker.pid" ] || return 0; sleep .2; done
  fail "the engine does not stop"
}

case ${1:-} in
  up | base | standins | down) "$1" ;;
  env) printf 'export DOCKER_HOST=%q DOCKER_CONFIG=%q PATH=%q:$PATH\n' "$DOCKER_HOST" "$DOCKER_CONFIG" "$folder/system/usr/bin" ;;
  --help) help ;;
  *) echo "engine.sh: '${1:-}' is no command: give up, base, standins, env or down" >&2; exit 2 ;;
esac
