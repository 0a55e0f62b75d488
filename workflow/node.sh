#!/usr/bin/env bash
# One run of a study on a machine that is at hand for minutes: docs/node.md.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash workflow/node.sh [OPTIONS] [-- OPTIONS OF SNAKEMAKE]
  --minutes M       of the whole run, from now to the packed folder (10)
  --reserve S       seconds of these for last checkpoints and packing (45)
  --config FILE     the study (config/cifar100.yaml)
  --wheels FOLDER   is installed first, from these files alone, into .node/
  --images FOLDER   archives of images, whole or in parts (NAME.00, NAME.01 ...), for the study
  --first COMMAND   is run next by bash, such as one that makes images
  --from FOLDER     what an earlier run has packed: it goes on from there
  --to FOLDER       where records, logs and checkpoints are packed (packed)
  --files N         of the packed folder at most (8)
  --mib N           MiB of each of them at most (16)
  --commit ID       of these files, where there is no git
TEXT
}

began=$(date +%s)
minutes=10 reserve=45 config=config/cifar100.yaml wheels='' images='' first='' from='' to=packed files=8 mib=16
while (($#)); do
  case $1 in
  --) shift && break ;;
  -h | --help) usage && exit ;;
  --minutes | --reserve | --config | --wheels | --images | --first | --from | --to | --files | --mib)
    (($# > 1)) || { echo "node.sh: $1 needs a value" >&2 && exit 2; }
    printf -v "${1#--}" %s "$2" && shift 2
    ;;
  --commit)
    (($# > 1)) || { echo "node.sh: $1 needs a value" >&2 && exit 2; }
    export ATTNGRID_COMMIT=$2 && shift 2
    ;;
  *) echo "node.sh: unknown option $1" >&2 && usage >&2 && exit 2 ;;
  esac
done
for name in minutes reserve; do
  [[ ${!name} =~ ^(0|[1-9][0-9]*)(\.[0-9]+)?$ ]] || {
    echo "node.sh: --$name: found ${!name}; needs a number, such as 10 or 0.5" >&2 && exit 2
  }
done
if [[ -n $from && ! -d $from ]]; then echo "node.sh: there is no $from yet: nothing to go on from" >&2; fi
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

versions() {
  "$python" - "$@" <<'PYTHON'
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "--"

found = [f"{name} {of(name)}" for name in sys.argv[1:]]
print(", ".join([f"Python {platform.python_version()}", *found, platform.platform()]))
PYTHON
}

gpus=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null) || gpus=
echo "GPU, driver, memory: ${gpus:-none; what wants no GPU runs on the CPU}"
versions torch torchvision numpy

if [[ -n $wheels ]]; then
  # beside what the machine has, and not into it; once for the same files
  site=$PWD/.node/python
  listed=$(cd "$wheels" && printf '%s\n' *.whl)
  if [[ ! -f $site/.wheels || $(<"$site/.wheels") != "$listed" ]]; then
    rm -rf "$site"
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
      --target "$site" "$wheels"/*.whl
    printf '%s\n' "$listed" >"$site/.wheels"
  fi
  # the code is this checkout's
  export PYTHONPATH=$checkout/src:$site${PYTHONPATH:+:$PYTHONPATH} PATH=$site/bin:$PATH
fi
versions attngrid snakemake pydantic fvcore
attngrid outputs "$config" >/dev/null # a mistake in it ends the run here

[[ -z $first ]] || bash -c "$first"
if [[ -n $images ]]; then attngrid prepare "$config" --archives "$images"; fi
if [[ -n $from && -d $from ]]; then
  attngrid import "$from" --study "$config" || echo "going on without what was refused" >&2
fi
pack() { attngrid pack "$config" "$to" --files "$files" --mib "$mib"; }
# what is wrong with the folder is known before the time is spent, and what the pack has is in it still
pack >/dev/null

stopped=''
trap 'stopped=1; [[ -z ${running-} ]] || kill -TERM "$running" 2>/dev/null || true' TERM INT HUP
mark=$(mktemp)
end=$("$python" -c "import sys; b, m, r = map(float, sys.argv[1:]); print(f'{b + 60 * m - r:.3f}')" "$began" "$minutes" "$reserve")
left=$("$python" -c "import sys, time; print(f'{float(sys.argv[1]) - time.time():.3f}')" "$end")
code=0
if [[ $left != -* ]]; then
  export ATTNGRID_DEADLINE=$end ATTNGRID_BUDGET=$left
  echo "deadline in $left s"
  # At the deadline the trainings stop by themselves; a second later Snakemake is told to start no more.
  # It goes to all that it has started, too. What does not end in half of the reserve is killed.
  timeout --signal=TERM --kill-after="$("$python" -c "print(max(1, $reserve / 2))")" \
    "$("$python" -c "print($left + 1)")" \
    snakemake records --nolock --cores all --profile "$checkout/workflow/profiles/gpu" \
    --configfile "$config" "$@" &
  running=$!
  [[ -z $stopped ]] || kill -TERM "$running" || true
  wait "$running" || code=$?
  # a signal ends the wait, not what is waited for
  while kill -0 "$running" 2>/dev/null; do wait "$running" || code=$?; done
else
  echo "node.sh: no time is left for a training" >&2
fi

pack
state=$(attngrid status "$config")
printf '%s\n' "$state"
echo "$(($(date +%s) - began)) s in all"
# what waits for time is no failure, and 124 is the deadline
waits=$(find logs -name '*.log' -newer "$mark" -exec grep -lE 'not started: |stopped at the deadline' {} + 2>/dev/null || true)
rm -f "$mark"
if [[ -n $stopped ]] || { ((code && code != 124)) && [[ -z $waits ]]; } || grep -qE '^  (failed|diverged): ' <<<"$state"; then
  exit 1
fi
