#!/bin/sh
# Build the sandboxes' base image from this machine's own apt sources: no registry, no pull. Needs root and Docker.
#
#   build-base.sh [NAME]      default agentgym-base:latest; SUITE and MIRROR override what apt's sources say,
#                             PACKAGES what is in it
#
# An image that this same recipe already made is kept.
set -eu

name=${1:-agentgym-base:latest}
packages=${PACKAGES:-python3,python3-pytest,git}

say() { printf 'build-base: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

for program in debootstrap docker tar sha256sum; do
    command -v "$program" >/dev/null || die "$program is not installed: run \`apt-get install debootstrap docker.io\`"
done
docker version >/dev/null 2>&1 || die "no Docker daemon answers: start dockerd, and run this as a user who may use it"

suite=${SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME:-}")}
mirror=${MIRROR:-$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite="$suite" '$1 == suite && $2 == "main" { print $3; exit }')}
[ -n "$suite" ] && [ -n "$mirror" ] || die "apt has no source for '$suite main': set SUITE and MIRROR"

recipe=$({ cat "$0"; echo "$suite $packages"; } | sha256sum | cut -c1-16)
if [ "$(docker image inspect --format '{{index .Config.Labels "agentgym.recipe"}}' "$name" 2>/dev/null)" = "$recipe" ]; then
    say "$name is up to date"
    exit 0
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root: run this with sudo"

root=$(mktemp -d "${TMPDIR:-/tmp}/agentgym-base.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
trap 'exit 1' INT TERM HUP

say "bootstrapping $suite with $packages (about a minute)"
debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    die "debootstrap failed; the whole log is $root.log"
}
rm -f "$root.log"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/* \
    "$root"/usr/share/locale/* "$root"/var/log/* "$root"/etc/apt/sources.list "$root"/etc/resolv.conf "$root"/etc/hostname
echo 'agent:x:1000:1000:agent:/tmp:/bin/sh' >>"$root/etc/passwd"
echo 'agent:x:1000:' >>"$root/etc/group"
install -d -o 1000 -g 1000 "$root/workspace"

say "importing $name"
tar -C "$root" --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -c . | docker import \
    --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin' --change 'ENV LANG=C.UTF-8' \
    --change 'USER 1000:1000' --change 'WORKDIR /workspace' --change "LABEL agentgym.recipe=$recipe" \
    --change 'CMD ["/bin/sh"]' - "$name" >/dev/null
say "$name is ready"
