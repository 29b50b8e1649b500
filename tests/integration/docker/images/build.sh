#!/usr/bin/env bash
# Builds the images of the container tests, without a registry: a Debian from its own mirror, and packages of Python
# and npm that are fetched here and copied in. What was built is kept in .cache/docker between runs.
#
#   build.sh [docker host]        default: DOCKER_HOST, or Docker's own default
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
cache=$root/.cache/docker
[ $# -eq 0 ] || export DOCKER_HOST=$1
export DOCKER_BUILDKIT=0 # the older builder needs nothing but the engine
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two test runs at once build once

suite=bookworm with=python3,nodejs
integration=$(cd "$here/../.." && pwd)
time_pin=$(sed -n 's/^mcp-server-time@/mcp-server-time==/p' "$integration/uvx.txt")
reference=@modelcontextprotocol/server-everything
reference_pin=$(sed -n "s,.*\"$reference\": \"\(.*\)\".*,\1,p" "$integration/npm/package.json")
version=$(cat "$here"/* "$root"/tests/servers/{everything,flow}*.py <(echo "$time_pin $reference_pin") | sha256sum | cut -c1-12)

targets="time everything reference"
is_built() { [ "$(docker image inspect --format '{{.Config.Labels.version}}' "$1" 2>/dev/null)" = "$version" ]; }
missing=
for target in $targets; do is_built "apollos-test/$target" || missing+=" $target"; done
[ -n "$missing" ] || exit 0

debian=$suite-${with//,/-} base=apollos-test/base:$suite-${with//,/-}
if ! docker image inspect "$base" >/dev/null 2>&1; then
  if [ ! -s "$cache/$debian.tar" ]; then
    rm -rf "$cache/rootfs"
    debootstrap --variant=minbase --include="$with" "$suite" "$cache/rootfs" http://deb.debian.org/debian \
      >"$cache/debootstrap.log" || { tail -n 20 "$cache/debootstrap.log" >&2; exit 1; }
    tar --directory "$cache/rootfs" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' \
      --exclude './usr/share/doc/*' --exclude './usr/share/locale/*' --exclude './dev/*' \
      --create --file "$cache/$debian.part" .
    mv "$cache/$debian.part" "$cache/$debian.tar"
    rm -rf "$cache/rootfs"
  fi
  docker import "$cache/$debian.tar" "$base" >/dev/null
fi

# Packages for the image's Python, which is 3.11 whatever runs this script.
packages() {
  local folder=$cache/context/site-$1
  shift
  rm -rf "$folder"
  uv pip install --quiet --python-version 3.11 --python-platform "$(uname -m)-manylinux_2_28" --only-binary :all: \
    --target "$folder" "$@"
}
mkdir -p "$cache/context"
packages time "$time_pin"
packages everything "fastmcp>=4,<5" "aiohttp>=3.13,<4"
rm -rf "$cache/context/npm"
npm install --prefix "$cache/context/npm" --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error \
  "$reference@$reference_pin" >/dev/null
cp "$here/Dockerfile" "$here/everything_container.py" "$root"/tests/servers/{everything,flow}*.py "$cache/context/"
for target in $missing; do
  docker build --quiet --network none --build-arg "BASE=$base" --label "version=$version" \
    --target "$target" --tag "apollos-test/$target" "$cache/context" >/dev/null
done
docker image prune --force --filter label=version >/dev/null
