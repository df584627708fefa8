# Finding or creating the Python environment; sourced by train.sh and test.sh, which set `here` to the project's folder.
#
#   choose_python EXTRAS [MODULE...]    sets `python` to an interpreter that imports atlas and has these modules
#   choose_test_python                  the same, with everything that the tests need
#   add_to_own_venv EXTRAS [MODULE...]  adds missing modules, if `python` belongs to a .venv that was created here
#
# The choice, in this order: the active environment; .venv; a python on the PATH that atlas is installed for. If there is
# none of them, .venv is created, or completed if an earlier installation was interrupted.

# What atlas imports in addition to the standard library.
atlas_modules="torch accelerate transformers yaml pydantic typer rich tensorboard h5py safetensors PIL av pyarrow huggingface_hub numpy"

say() { printf '%s\n' "$*" >&2; }

# has_modules PYTHON MODULE...: whether it finds them all, without spending seconds on importing them; run from elsewhere,
# because the user's current folder may contain others of these names
has_modules() {
    (cd / && PYTHONSAFEPATH=1 "$1" -c 'import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))' "${@:2}") >/dev/null 2>&1
}

# imports_atlas PYTHON: whether atlas is installed for it; run from elsewhere, because this folder contains the source
imports_atlas() {
    (cd / && env -u PYTHONPATH "$1" -c 'import atlas') >/dev/null 2>&1
}

# can_run PYTHON: whether atlas is installed for it, or everything that it needs to run from this folder
can_run() {
    # shellcheck disable=SC2086  # a list of words
    imports_atlas "$1" || has_modules "$1" $atlas_modules
}

choose_python() {
    local extras=$1 active
    shift
    venv=$here/.venv
    # The state that an installation leaves; absent if the environment was made by hand.
    marker=$venv/.atlas-install
    active=$(command -v python || command -v python3 || true)

    # Lets every process find this folder's source, whatever folder it runs in.
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -n "$active" ] && can_run "$active" && has_modules "$active" "$@"; then
        python=$active
    elif venv_works && can_run "$venv/bin/python"; then
        python=$venv/bin/python
        has_modules "$python" "$@" || locked install_missing "$extras" "$@"
    elif [ -n "$active" ] && imports_atlas "$active" && has_modules "$active" "$@"; then
        python=$active
    else
        locked make_and_install "$extras"
    fi
}

# venv_works: whether .venv is complete, or made by hand, and its Python runs: the target of its link may be gone
venv_works() {
    [ "$(installation_state)" != unfinished ] && [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' >/dev/null 2>&1
}

choose_test_python() {
    choose_python sim,wandb,dev pytest pytest_timeout xdist hypothesis ruff mypy robosuite mujoco termcolor wandb \
        grpc msgpack websockets zmq
}

add_to_own_venv() {
    if [ "$python" = "$venv/bin/python" ] && [ "$(installation_state)" = complete ] && ! has_modules "$python" "${@:2}"; then
        locked install_missing "$@"
    fi
}

installation_state() { cat "$marker" 2>/dev/null || echo by-hand; }

# ---- one at a time -----------------------------------------------------------------------------------------

# locked COMMAND...: runs it while no other script creates or completes this environment
locked() {
    local status=0 existed=false lock
    if [ -e "$venv" ]; then
        existed=true
    fi
    mkdir -p "$venv"
    lock=$venv/.atlas-lock
    if command -v flock >/dev/null; then
        exec 9>>"$lock" # the lock ends with the last process that has this open, however it ends
        flock -n 9 || {
            say "Waiting for another script, which is making the environment in $venv"
            flock 9
        }
        "$@" || status=$?
        exec 9>&-
    else
        take_lock "$lock.pid"
        "$@" || status=$?
        rm -f "$lock.pid"
    fi
    return "$status"
}

# take_lock FILE: makes a file that says who has the lock, once there is none, or only that of a process that is gone
take_lock() {
    local own holder said=false
    own="$(uname -n) $$"
    until (set -o noclobber && echo "$own" >"$1") 2>/dev/null; do
        holder=$(cat "$1" 2>/dev/null || true)
        # Whether a process of another machine is alive cannot be known.
        if [ "${holder% *}" = "${own% *}" ] && ! kill -0 "${holder##* }" 2>/dev/null; then
            # One of the waiting scripts removes it, so that none removes one that a third has made meanwhile.
            if mkdir "$1.away" 2>/dev/null; then
                [ "$(cat "$1" 2>/dev/null)" != "$holder" ] || rm -f "$1"
                rmdir "$1.away"
            fi
        elif [ -n "$holder" ] && ! $said; then
            say "Waiting for another script ($holder), which is making the environment; if that is not so, remove $1*"
            said=true
        fi
        sleep 0.2
    done
}

# ---- creating it -------------------------------------------------------------------------------------------

# install_missing EXTRAS MODULE...: unless another script has done so meanwhile
install_missing() {
    has_modules "$venv/bin/python" "${@:2}" || install_into_venv "$1"
}

make_and_install() {
    python=$venv/bin/python
    if venv_works && can_run "$python"; then
        return # another script has made it meanwhile
    fi
    make_venv && install_into_venv "$1"
}

make_venv() {
    local made
    if [ -e "$venv/bin" ] && ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
        if [ "$(installation_state)" = by-hand ]; then
            say "The Python of $venv is gone, and it was not made here: mend it, or remove it, and it is made again."
            return 2
        fi
        say "The Python of the environment in $venv is gone; making it again"
        find "$venv/" -mindepth 1 -maxdepth 1 ! -name '.atlas-*' -exec rm -rf {} +
    elif $existed; then
        say "Completing the unfinished environment in $venv"
    else
        say "Making a Python environment in $venv (once; a few minutes)"
    fi
    made=$(new_enough_python) || return
    echo unfinished >"$marker"
    # Also repairs an environment whose creation was interrupted.
    "$made" -m venv "$venv"
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
