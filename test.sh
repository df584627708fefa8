#!/usr/bin/env bash
# Lint, type-check and test, in an environment that has the tools.
set -euo pipefail

# The folder of this script, also if it is called through a link, and whatever CDPATH holds.
unset CDPATH
here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)

usage() {
    cat <<'EOF'
Lint, type-check and test atlas.

Usage: ./test.sh [--slow] [pytest's arguments ...]

  --slow   also run the tests that take minutes
  --help   this text

The tests run in one process more than there are cores, up to eight, since many of them wait; `-n 0` runs them in one.

The environment is created in .venv beside this script if there is none, and completed if tools are missing.
EOF
}

selection=(-m "not slow")
# A file's tests run in one process and share the data they have made.
cores=$(getconf _NPROCESSORS_ONLN)
parallel=(-n "$((cores < 8 ? cores + 1 : 8))" --dist loadfile --no-loadscope-reorder)
case ${1:-} in
    --help | -h)
        usage
        exit 0
        ;;
    --slow)
        selection=()
        shift
        ;;
esac

# shellcheck source=scripts/venv.sh
source "$here/scripts/venv.sh"
choose_test_python
cd "$here"

if [ "$(uname -s)" = Linux ] && ! "$python" -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null; then
    say "libEGL.so.1 is missing, which the simulator renders with; on Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
fi

failed=()
check() {
    say ""
    say "== $1"
    "${@:2}" || failed+=("$1")
}

check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check .
check "mypy" "$python" -m mypy atlas
export PYTHONPATH="$here/scripts:$PYTHONPATH"
check "pytest" "$python" -m pytest -rs -p deselected "${parallel[@]}" ${selection[@]+"${selection[@]}"} "$@"

say ""
if [ ${#failed[@]} -gt 0 ]; then
    say "Failed:$(printf ' %s;' "${failed[@]}")"
    exit 1
fi
say "All checks passed."
