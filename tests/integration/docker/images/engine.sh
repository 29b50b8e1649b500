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

# What the engine and build.sh need. The services that come with the packages are not started: they would be engines
# that nobody ends.
install() {
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker.io iptables iproute2 debootstrap >/dev/null
  command -v docker >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq docker-cli >/dev/null
}

start() {
  local program
  for program in docker dockerd iptables ip debootstrap; do
    command -v "$program" >/dev/null || { install; break; }
  done
  if ! docker version >/dev/null 2>&1; then
    rm -f "$pid"
    nohup dockerd --data-root "$data" --pidfile "$pid" </dev/null >"$cache/dockerd.log" 2>&1 &
    for _ in $(seq 100); do
      docker version >/dev/null 2>&1 && break
      sleep 0.2
    done
    docker version >/dev/null || { tail -n 20 "$cache/dockerd.log"; exit 1; }
    clean
  fi
  "$here/build.sh"
}

# What the tests of a run that was killed have left in the engine's folder, which only this script's engines use. What
# is built stays.
clean() {
  docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
  docker network prune --force >/dev/null
  docker volume ls --quiet | xargs --no-run-if-empty docker volume rm --force >/dev/null
}

stop() {
  local engine
  engine=$(cat "$pid" 2>/dev/null) || return 0
  [ "$(cat "/proc/$engine/comm" 2>/dev/null)" = dockerd ] || return 0 # it has ended, and its number may be another's
  kill "$engine"
  for _ in $(seq 150); do # it ends its containers first
    [ -e "/proc/$engine" ] || return 0
    sleep 0.2
  done
  echo "the Docker engine does not end (process $engine)" >&2
  exit 1
}

"$1"
