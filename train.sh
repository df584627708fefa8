#!/usr/bin/env bash
# Train a policy: finds or creates the Python environment, then hands over to `python -m atlas.cli train`.
set -euo pipefail

# The folder of this script, also if it is called through a link, and whatever CDPATH holds.
unset CDPATH
here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)

usage() {
    cat <<'EOF'
Train a vision-language-action policy.

Usage: ./train.sh [options] [key=value ...]

  --config FILE       YAML config file (default: atlas/configs/train_config.yaml)
  --mode single|multi one process, or several (default: all visible GPUs, or one CPU process)
  --gpus N            number of processes, one per GPU; with --cpu: CPU processes
  --gpu-ids 0,2       which of the visible GPUs
  --cpu               do not use a GPU
  --num-nodes N       several machines: start the same command on each (default: SLURM's number, or 1)
  --node-rank R       which of them this is, from 0 (default: SLURM's)
  --master-addr HOST  the address of machine 0 (default: SLURM's first host)
  --master-port PORT  a port that is free there (default: 29500)
  --resume auto|DIR|wandb:ENTITY/PROJECT/NAME:ALIAS
                      continue from a checkpoint; auto: the latest of the run, or a fresh start
  --skip-damaged      leave out damaged files and episodes of the data; each is named
  --wandb             also log to Weights & Biases
  --wandb-project P   its project (default: atlas-vla)
  --wandb-entity E    its user or team
  --wandb-name N      the run's name there (default: run_name)
  --log FILE          append everything that is printed to FILE as well
  --background        run detached; prints the process id and the log's path, and returns
  --debug             a few steps, to check that everything runs; Weights & Biases stays off
  --help              this text

  key=value           any key of the config, such as training.max_steps=100 data.path=my_data

Examples:
  ./train.sh
  ./train.sh training.max_steps=1000 run_name=first
  ./train.sh --cpu --mode multi --gpus 2
  ./train.sh --num-nodes 2 --node-rank 1 --master-addr first-host     # on the second of two machines
  sbatch --nodes=4 scripts/slurm.sh run_name=large                    # on a cluster
  ./train.sh --background --log runs.log --resume auto run_name=first

Relative paths start at the current folder. The environment is created in .venv beside this script if there is none;
a .venv that imports atlas is used as it is, and so is an active virtualenv or conda environment.

SIGINT, SIGTERM, SIGUSR1 and SIGHUP finish the step and write a checkpoint; a second signal ends at once.
Exit codes: 0 done; 2 the input is wrong; 130 stopped by SIGINT, 143 by another signal, with a checkpoint; 1 other.
EOF
}

wrong() {
    printf '%s\n' "$*" >&2
    exit 2
}

log=
background=false
extras=sim
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --log)
            [ $# -ge 2 ] && [ -n "$2" ] || wrong "--log needs a file, such as --log train.log."
            log=$2
            shift
            ;;
        --log=*)
            log=${1#--log=}
            [ -n "$log" ] || wrong "--log needs a file, such as --log train.log."
            ;;
        --background) background=true ;;
        --wandb | wandb.enabled=true)
            extras=sim,wandb
            arguments+=("$1")
            ;;
        *) arguments+=("$1") ;;
    esac
    shift
done

# Shells do not expand a tilde after =.
# shellcheck disable=SC2088  # this is the tilde of --log=~/…, which nobody has expanded
case $log in "~/"*) log=$HOME/${log#"~/"} ;; esac

if $background && [ -z "$log" ]; then
    log=outputs/train_$(date +%Y%m%d_%H%M%S)_$$.log
fi
if [ -n "$log" ]; then
    { mkdir -p -- "$(dirname -- "$log")" && : >>"$log"; } 2>/dev/null || wrong "--log: the file $log cannot be written."
    export PYTHONUNBUFFERED=1
fi

if $background; then
    set -m # its own process group, in which SIGINT is not ignored
    # The process id stays the same when the script hands over to Python.
    nohup bash "$here/train.sh" ${arguments[@]+"${arguments[@]}"} >>"$log" 2>&1 </dev/null &
    echo "process id: $!"
    echo "log: $log"
    exit 0
fi

if [ -n "$log" ]; then
    # tee outlives the signals that are meant for the training, so the last output is kept.
    exec > >(trap '' INT TERM HUP && exec tee -a -- "$log") 2>&1
fi

# shellcheck source=scripts/venv.sh
source "$here/scripts/venv.sh"
choose_python "$extras"
if [ "$extras" = sim,wandb ]; then
    add_to_own_venv "$extras" wandb
fi

# The source beside this script runs, even if the user's folder contains another `atlas`.
export PYTHONSAFEPATH=1
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    exec "$python" -m atlas.cli train ${arguments[@]+"${arguments[@]}"}
fi
# Python 3.10 does not know the variable and would look into that folder first: see atlas/system/process_control/interpreter.py.
start='import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; import runpy; '
start+='runpy.run_module("atlas.cli", run_name="__main__", alter_sys=True)'
exec "$python" -c "$start" train ${arguments[@]+"${arguments[@]}"}
