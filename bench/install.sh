#!/usr/bin/env bash
# Installs what the comparisons need beside Rust: the other tools (Debian's restic, ldb and db_bench; rustic from the registry of
# Rust crates, built once), Java, and rocksdbjni from Maven. Everything that is not a Debian package goes below .ci/cache, which is
# not tracked. Building rustic takes 10 to 30 minutes on two cores; what is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.ci/cache

rustic=0.11.4
rocksdbjni=11.8.1

missing=()
for need in restic:restic ldb:rocksdb-tools db_bench:rocksdb-tools java:default-jdk-headless mvn:maven unzip:unzip; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

jar=$cache/jars/rocksdbjni-$rocksdbjni.jar
if [ ! -f "$jar" ]; then
  mkdir -p "$cache/jars"
  mvn -q -B dependency:copy "-Dartifact=org.rocksdb:rocksdbjni:$rocksdbjni" "-DoutputDirectory=$cache/jars"
fi
native=$cache/native/$rocksdbjni
if [ ! -f "$native/librocksdbjni.so" ]; then
  case "$(uname -m)" in aarch64) machine=linux-aarch64 ;; *) machine=linux64 ;; esac
  mkdir -p "$native"
  unzip -p "$jar" "librocksdbjni-$machine.so" > "$native/librocksdbjni.so.part"
  mv "$native/librocksdbjni.so.part" "$native/librocksdbjni.so"
fi

# Only what backs up and restores: rustic's other features (terminal interface, WebDAV, metrics) do not touch its speed.
if [ ! -x "$cache/rustic-$rustic/bin/rustic" ]; then
  CARGO_TARGET_DIR=$cache/rustic-build nice -n 15 \
    cargo install --locked --no-default-features --root "$cache/rustic-$rustic" --version "=$rustic" rustic-rs
  rm -rf "$cache/rustic-build"
fi
echo "ready: $(restic version | cut -d' ' -f1,2), $("$cache/rustic-$rustic/bin/rustic" --version), $(ldb --version 2>&1 | head -1)"
