#!/bin/sh
# What the tests marked `system` need beside wheels: a browser.
set -eu
if command -v chromium >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  apt-get update -qq && apt-get install -y -qq chromium >/dev/null
else
  echo "system tests: no chromium here, and it cannot be installed by this user: browser tests will be skipped" >&2
fi
