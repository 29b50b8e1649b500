#!/usr/bin/env bash
# A Docker engine of our own for the tests of containers, where none runs: CI starts it, and ends it.
#
#   engine.sh start     installs what is missing (Debian, as root), starts the engine, builds the images
#   engine.sh stop      ends the engine that start has started
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../../../.." && pwd)/.cache/docker
data=/var/tmp/apollos-docker
mkdir -p "$cache"
pid=$cache/dockerd.pid

start() {
  if ! docker version >/dev/null 2>&1; then
    if ! command -v dockerd >/dev/null || ! command -v debootstrap >/dev/null; then
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker.io iptables debootstrap >/dev/null
    fi
    rm -f "$pid"
    nohup dockerd --data-root "$data" --pidfile "$pid" </dev/null >"$cache/dockerd.log" 2>&1 &
    for _ in $(seq 100); do
      docker version >/dev/null 2>&1 && break
      sleep 0.2
    done
    docker version >/dev/null || { tail -n 20 "$cache/dockerd.log"; exit 1; }
  fi
  "$here/build.sh"
}

stop() {
  [ -s "$pid" ] || return 0
  kill "$(cat "$pid")" 2>/dev/null || true
  for _ in $(seq 100); do
    [ -s "$pid" ] || return 0
    sleep 0.2
  done
}

"$1"
