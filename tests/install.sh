#!/bin/sh
# Installs what the tests and the benchmarks start: registries, clients, tools. Debian 12, as root.
# Does nothing where all of it is there already. Installing starts no service. Arguments are further
# packages.
set -eu

packages="
  docker-registry
  docker.io containerd runc
  podman
  skopeo buildah
  busybox-static
  iproute2 nftables mount e2fsprogs rsync strace
  nghttp2-client nginx-light wrk
  valgrind
"

missing=""
for package in $packages "$@"; do
  state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "tests/install.sh: these packages are missing, and installing them needs root:$missing" >&2
  echo "tests/install.sh: run it once with sudo" >&2
  exit 1
fi

# Without this, Debian would start dockerd, docker-registry and nginx on their usual ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086 # a list of words
apt-get -qq --yes --no-install-recommends install $missing >/dev/null
