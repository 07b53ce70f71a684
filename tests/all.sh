#!/usr/bin/env bash
# Every check, side by side: each alone leaves a core idle now and then. `make test` calls it.
#
# The native tests with sanitizers begin at once, since they need nothing of the package; lint and the native tests as
# shipped run beside the Python tests. What runs beside is printed in one piece when it has ended.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'trap - INT TERM; kill 0' INT TERM

names=() pids=() failed=()

beside() {  # NAME COMMAND...
  local name=$1
  shift
  { "$@" > "$logs/$name" 2>&1; status=$?; echo; echo "==> $name:"; cat "$logs/$name"; exit $status; } &
  names+=("$name") pids+=($!)
}

make --no-print-directory build-tools || exit 1
beside native-sanitize make --no-print-directory native-sanitize
make --no-print-directory installed-dev || failed+=(install)
if [ ${#failed[@]} -eq 0 ]; then
  beside lint make --no-print-directory lint
  beside native-plain make --no-print-directory native-plain
  make --no-print-directory pytest || failed+=(pytest)
fi
for i in "${!pids[@]}"; do wait "${pids[i]}" || failed+=("${names[i]}"); done
[ ${#failed[@]} -eq 0 ] || { echo "==> failed: ${failed[*]}" >&2; exit 1; }
echo "==> every check passed"
