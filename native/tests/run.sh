#!/usr/bin/env bash
# Builds and runs the native tests.   native/tests/run.sh [plain] [sanitize] [thread] [-- name of a test]
#
#   plain      as shipped (-O3): what the compiler's vectors really compute
#   sanitize   with the address and undefined-behaviour sanitizers
#   thread     with the thread sanitizer
#
# Without arguments: plain and sanitize. Builds stay in $SATRAP_NATIVE_BUILD (build/native-tests), one folder a
# variant, so a second run compiles only what has changed. The Makefile builds the package in the folder of `plain`.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
build=${SATRAP_NATIVE_BUILD:-$here/build/native-tests}

variants=()
while [ $# -gt 0 ] && [ "$1" != "--" ]; do variants+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#variants[@]} -gt 0 ] || variants=(plain sanitize)

generator=()
command -v ninja > /dev/null && generator=(-G Ninja)

for variant in "${variants[@]}"; do
  options=()
  case $variant in
    plain) ;;
    sanitize) options=(-DSATRAP_SANITIZE=ON) ;;
    thread) options=("-DCMAKE_CXX_FLAGS=-fsanitize=thread -g" "-DCMAKE_EXE_LINKER_FLAGS=-fsanitize=thread") ;;
    *) echo "run.sh: no variant '$variant'; one of plain, sanitize, thread" >&2; exit 2 ;;
  esac
  folder=$build-$variant
  cmake -S "$here" -B "$folder" ${generator[@]+"${generator[@]}"} ${options[@]+"${options[@]}"} > /dev/null
  cmake --build "$folder" --target satrap_native_tests > "$folder/build.log" || { cat "$folder/build.log" >&2; exit 1; }
  echo "native tests, $variant:"
  # A leak of the tests' own is a failure too; the thread sanitizer ends at the first race.
  ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
    "$folder/satrap_native_tests" "$@"
done
