# Finding or making the Python environment; sourced by train.sh and test.sh, which set `here` to the project's folder.
#
#   choose_python EXTRAS [MODULE...]    sets `python` to an interpreter that imports atlas and has these modules
#   choose_test_python                  the same, with all that the tests need
#   add_to_own_venv EXTRAS [MODULE...]  adds modules that are missing, where `python` is of a .venv that was made here
#
# The choice, in this order: the active environment; .venv; a python on the PATH that atlas is installed for. With none
# of them, .venv is made, or completed where an earlier installation was interrupted.

# What atlas imports, besides the standard library.
atlas_modules="torch accelerate transformers yaml pydantic typer rich tensorboard h5py safetensors PIL av pyarrow huggingface_hub numpy"

say() { printf '%s\n' "$*" >&2; }

# has_modules PYTHON MODULE...: whether it finds them all, without the seconds that importing them takes
has_modules() {
    "$1" -c 'import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))' "${@:2}" >/dev/null 2>&1
}

# imports_atlas PYTHON: whether atlas is installed for it; asked from elsewhere, because this folder holds the source
imports_atlas() {
    (cd / && env -u PYTHONPATH "$1" -c 'import atlas') >/dev/null 2>&1
}

# can_run PYTHON: whether atlas is installed for it, or all that it needs to run from this folder
can_run() {
    # shellcheck disable=SC2086  # a list of words
    imports_atlas "$1" || has_modules "$1" $atlas_modules
}

choose_python() {
    local extras=$1 active
    shift
    venv=$here/.venv
    # The state that an installation leaves: absent where the environment was made by hand.
    marker=$venv/.atlas-install
    active=$(command -v python || command -v python3 || true)

    # So that the source of this folder is found from every folder, and by every process.
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -n "$active" ] && can_run "$active" && has_modules "$active" "$@"; then
        python=$active
    elif [ -x "$venv/bin/python" ] && [ "$(installation_state)" != unfinished ] && can_run "$venv/bin/python"; then
        python=$venv/bin/python
        has_modules "$python" "$@" || install_into_venv "$extras"
    elif [ -n "$active" ] && imports_atlas "$active" && has_modules "$active" "$@"; then
        python=$active
    else
        make_venv
        install_into_venv "$extras"
    fi
}

choose_test_python() {
    choose_python sim,wandb,dev pytest pytest_timeout hypothesis ruff mypy robosuite mujoco termcolor wandb
}

add_to_own_venv() {
    if [ "$python" = "$venv/bin/python" ] && [ "$(installation_state)" = complete ] && ! has_modules "$python" "${@:2}"; then
        install_into_venv "$1"
    fi
}

installation_state() { cat "$marker" 2>/dev/null || echo by-hand; }

make_venv() {
    if [ -e "$venv" ]; then
        say "Completing the unfinished environment in $venv"
    else
        say "Making a Python environment in $venv (once; a few minutes)"
    fi
    mkdir -p "$venv"
    echo unfinished >"$marker"
    # Also mends an environment whose making was interrupted.
    "$(new_enough_python)" -m venv "$venv"
    python=$venv/bin/python
}

new_enough_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    say "Python 3.10 or newer is needed, and none was found on the PATH."
    return 1
}

install_into_venv() {
    local target=.
    [ -z "$1" ] || target=".[$1]"
    echo unfinished >"$marker"
    say "Installing atlas and what it needs ($target)"
    if ! (cd "$here" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        -c constraints.txt -e "$target") >&2; then
        say "The installation did not finish; what pip said is above. Starting again continues it."
        return 1
    fi
    echo complete >"$marker"
    say "Installed."
}
