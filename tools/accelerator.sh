#!/usr/bin/env bash
# Does everything of this project that needs an accelerator, in order of value: parity tests, benchmark, trainings.
#
#   DATA=DAVIS STILLS=stills tools/accelerator.sh        # again and again, until it exits with 0
#
# A call ends by itself after SLICE_SECONDS; SIGTERM ends it earlier and loses nothing either. What is done is kept in
# WORK and not done again; what a fresh machine needs to go on is packed into OUT, which it gets as RESTORE.
#
# Exit status: 0 all is done; 75 more is left, call again; 1 a step failed, OUT/status.txt says which; 6 no accelerator.
#
# Environment (relative paths count from the repository):
#   OUT            results: at most 8 files of at most 16 MB, no folders; default ./accelerator-results
#   RESTORE        an earlier OUT to go on from; what WORK holds already comes first
#   WORK           work folders of the steps; default ./runs/accelerator
#   DATA           data set in DAVIS' layout (JPEGImages/480p, Annotations/480p); without it nothing is trained
#   STILLS         folder of photographs (images/, masks/); without it no pair is made of photographs
#   TRUNKS         folder with NAME.safetensors of ImageNet trunks (adnet convert NAME -o NAME.safetensors), for a
#                  machine without PyTorch or the `convert` extra
#   WHEELS         folder of wheels that the machine lacks, installed without a network into WORK/site
#   PYTHON         interpreter; default python3
#   SLICE_SECONDS  time for one call; default 540
#   STEPS          steps of each training instead of the table's
#   TINY           1: rehearsal on any machine: smallest network and crop, 2 steps, the bundled clip as data set
set -u

# Trainings: name, configuration, changed keys. One that docs/model_zoo.md has as `name` is not done again.
TRAININGS='
compact-481 configs/compact.py data.crop=481 batch=8 steps=30000 optim.horizon=30000 checkpoint.every=1000
'
TINY_KEYS='model.backbone=resnet10 model.stem=conv7x7 model.aspp_width=8 model.embedding=8 init.weights= data.crop=65 batch=2
  steps=2 optim.horizon=1000 optim.frozen_stages=4 data.stills_fraction=0 evaluate.size=65x65'
SECTIONS='model convolutions attention end-to-end train-step input metrics'   # of tools/benchmark.py
PART=15M        # below the 16 MB a file may have, in either meaning of MB
MOST_FILES=8

cd "$(dirname "$0")/.." || exit 1
tiny=${TINY:-0}
python=${PYTHON:-python3}
slice=${SLICE_SECONDS:-540}
out=${OUT:-accelerator-results}
work=${WORK:-runs/accelerator}
data=${DATA:-}
sections=$SECTIONS
reserve=40      # seconds kept back for saving a checkpoint and packing
worthwhile=60   # seconds below which a step is not begun
if [ "$tiny" = 1 ]; then
  data=${data:-adnet_jax/assets/sample}
  reserve=5
  worthwhile=1
  sections=input  # the quickest: the others have tests of their own
fi
mkdir -p "$out" "$work" || exit 1
export PYTHONUNBUFFERED=1

child=
stopping=0
more=0          # whether something is left for the next call
failed=()

say() { printf 'accelerator: %s\n' "$*"; }

# What may still be used of this call's time.
left() { echo $((stopping ? 0 : slice - reserve - SECONDS)); }

stop() {
  stopping=1
  if [ -n "$child" ]; then kill -TERM "$child"; fi
}
trap stop TERM INT

# limited LOG COMMAND...: runs the command with SIGTERM at the end of the slice; its output is added to LOG.
limited() {
  local log=$1 status
  shift
  timeout --preserve-status --kill-after=$((reserve + 20)) "$(left)" "$@" >>"$log" 2>&1 &
  child=$!
  # A signal to this script ends `wait` before the child has ended.
  while wait "$child"; status=$?; kill -0 "$child" 2>/dev/null; do :; done
  child=
  return "$status"
}

# begin STEP: whether there is time for it.
begin() {
  if [ "$(left)" -lt "$worthwhile" ]; then
    say "$1: left for the next call"
    more=1
    return 1
  fi
  say "$1"
}

# fail STEP STATUS LOG: notes a failed step, or one that was only stopped (75: saved; else by our own signal).
fail() {
  if [ "$2" = 75 ] || { [ "$2" -gt 128 ] && [ "$(left)" -le 0 ]; }; then
    say "$1: not finished, goes on at the next call"
    more=1
  else
    say "$1: FAILED with status $2; the end of $3:"
    tail -n 15 "$3"
    failed+=("$1 (status $2)")
  fi
}

install_wheels() {
  [ -n "${WHEELS:-}" ] || return 0
  local site=$PWD/$work/site wanted
  case $work in /*) site=$work/site ;; esac
  wanted=$(cd "$WHEELS" && ls -- *.whl)
  if [ "$wanted" != "$(cat "$site/.wheels" 2>/dev/null)" ]; then
    say "installing $(wc -w <<<"$wanted") wheels"
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$WHEELS"/*.whl || exit 1
    printf '%s\n' "$wanted" >"$site/.wheels"
  fi
  PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
}

# Unpacks RESTORE into WORK, where that is not further already.
restore() {
  [ -n "${RESTORE:-}" ] || return 0
  local file name
  for file in parity.txt benchmark.json; do
    if [ -f "$RESTORE/$file" ] && [ ! -e "$work/$file" ]; then cp "$RESTORE/$file" "$work/$file"; fi
  done
  for file in "$RESTORE"/*.tar.gz.00; do
    [ -e "$file" ] || continue
    name=$(basename "$file" .tar.gz.00)
    if [ ! -e "$work/$name" ]; then
      say "$name: restored from $RESTORE"
      # Under another name first: half a folder must not look like a whole one.
      rm -rf "$work/.restored"
      mkdir "$work/.restored"
      cat "${file%00}"[0-9][0-9] | tar -xzf - -C "$work/.restored" && mv "$work/.restored/$name" "$work/$name" || exit 1
    fi
  done
}

parity() {
  if [ -e "$work/parity.txt" ]; then say 'parity tests: done'; return; fi
  begin 'parity tests' || return
  local log=$work/parity.log files status
  mapfile -t files < <(grep -ls 'mark\.gpu' tests/test_*.py)
  : >"$log"
  if [ "${#files[@]}" = 0 ]; then echo 'no test carries the marker gpu' >"$log"; mv "$log" "$work/parity.txt"; return; fi
  limited "$log" "$python" -m pytest -m gpu -q -p no:cacheprovider "${files[@]}"
  status=$?
  # 5: no test was collected.
  if [ "$status" = 0 ] || [ "$status" = 5 ]; then mv "$log" "$work/parity.txt"; else fail 'parity tests' "$status" "$log"; fi
}

# benchmark SECTION: measures a section of tools/benchmark.py and adds it to benchmark.json.
benchmark() {
  if grep -qs "^    \"$1\": " "$work/benchmark.json"; then say "benchmark, $1: done"; return; fi
  begin "benchmark, $1" || return
  local log=$work/benchmark.log part=$work/benchmark.part.json arguments=("$1" --json "$work/benchmark.part.json") status
  if [ "$tiny" = 1 ]; then arguments+=(--tiny); fi
  # What the oracle's network is measured in beside plain PyTorch; the rehearsal compiles nothing.
  case $1:$tiny in model:0 | train-step:0) arguments+=(--oracle eager channels-last compiled) ;; esac
  if [ "$1" = input ] && [ -n "$data" ]; then arguments+=(--data "$data"); fi
  if [ "$1" = input ] && [ -n "${STILLS:-}" ]; then arguments+=(--stills "$STILLS"); fi
  : >"$log"
  limited "$log" "$python" tools/benchmark.py "${arguments[@]}"
  status=$?
  if [ "$status" = 0 ]; then
    "$python" - "$work/benchmark.json" "$part" <<'PROGRAM' || failed+=("benchmark, $1 (not merged)")
import json, os, sys
whole, part = sys.argv[1:]
report = json.load(open(part))
if os.path.exists(whole):
  report["sections"] = {**json.load(open(whole))["sections"], **report["sections"]}
with open(part, "w") as file:
  json.dump(report, file, indent=2)
os.replace(part, whole)
PROGRAM
  else
    fail "benchmark, $1" "$status" "$log"
  fi
}

# training NAME CONFIG KEY=VALUE...: trains on, and evaluates in the end.
training() {
  local name=$1 config=$2 folder=$work/$1 keys=() key trunk status
  shift 2
  if [ "$tiny" != 1 ] && grep -qs "\`$name\`" docs/model_zoo.md; then say "$name: in docs/model_zoo.md"; return; fi
  if [ -e "$folder/evaluation/scores.json" ]; then say "$name: done"; return; fi
  if [ -z "$data" ]; then say "$name: left out, DATA is not set"; failed+=("$name (DATA is not set)"); return; fi
  keys+=("$@" "data.root=$data")
  if [ -n "${STILLS:-}" ]; then keys+=("data.stills=$STILLS"); else keys+=(data.stills_fraction=0); fi
  trunk=$(sed -n "s/^ *config\.init\.weights = '\(.*\)'$/\1/p" "$config")
  if [ -n "${TRUNKS:-}" ] && [ -e "$TRUNKS/$trunk.safetensors" ]; then
    keys+=("init.weights=$TRUNKS/$trunk.safetensors")
  fi
  # shellcheck disable=SC2206  # the keys are words
  if [ "$tiny" = 1 ]; then keys+=($TINY_KEYS); fi
  if [ -n "${STEPS:-}" ]; then keys+=("steps=$STEPS"); fi
  local command=("$python" -m adnet_jax.main --config "$config" --workdir "$folder")
  for key in "${keys[@]}"; do command+=("--config.$key"); done

  mkdir -p "$folder"
  if [ ! -e "$folder/final.safetensors" ]; then
    begin "$name: training" || return
    limited "$folder/log.txt" "${command[@]}" --mode train
    status=$?
    if [ ! -e "$folder/final.safetensors" ]; then fail "$name: training" "$status" "$folder/log.txt"; return; fi
  fi
  begin "$name: evaluation" || return
  limited "$folder/log.txt" "${command[@]}" --mode evaluate --resume
  status=$?
  if [ ! -e "$folder/evaluation/scores.json" ]; then fail "$name: evaluation" "$status" "$folder/log.txt"; fi
}

# pack NAME: what is needed to go on, or the result, as parts in OUT.
pack() {
  local name=$1 file files=() newest
  for file in config.json train.jsonl log.txt final.safetensors evaluation/scores.json; do
    if [ -e "$work/$name/$file" ]; then files+=("$name/$file"); fi
  done
  if [ ! -e "$work/$name/final.safetensors" ] && [ -d "$work/$name/checkpoints" ]; then
    # A checkpoint that is still being written has a longer name.
    newest=$(find "$work/$name/checkpoints" -mindepth 1 -maxdepth 1 -printf '%f\n' | grep -x '[0-9]*' | sort -n | tail -n 1)
    if [ -n "$newest" ]; then files+=("$name/checkpoints/$newest"); fi
  fi
  rm -f "$out/$name.tar.gz."[0-9][0-9]
  if [ "${#files[@]}" -gt 0 ]; then
    tar -C "$work" -cf - "${files[@]}" | gzip -1 | split -d -a 2 -b "$PART" - "$out/$name.tar.gz."
  fi
}

deliver() {
  local name rest file
  for file in parity.txt benchmark.json; do
    if [ -e "$work/$file" ]; then cp "$work/$file" "$out/$file"; fi
  done
  while read -r name rest; do
    if [ -n "$name" ] && [ -d "$work/$name" ]; then pack "$name"; fi
  done <<<"$TRAININGS"
  {
    if [ "$more" = 1 ]; then echo 'unfinished: call again'; fi
    if [ "${#failed[@]}" -gt 0 ]; then printf 'failed: %s\n' "${failed[@]}"; fi
    if [ "$more" = 0 ] && [ "${#failed[@]}" = 0 ]; then echo 'complete'; fi
  } >"$out/status.txt"
  if [ "$(find "$out" -type f | wc -l)" -gt "$MOST_FILES" ]; then
    say "more than $MOST_FILES files in $out: take some away before they are carried"
    failed+=("too many files in OUT")
  fi
}

install_wheels
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
if [ "$tiny" != 1 ] && [ "$("$python" -c 'import jax; print(jax.default_backend())')" = cpu ]; then
  say 'JAX sees no accelerator here (TINY=1 rehearses without one)' >&2
  exit 6
fi
restore
parity
for section in $sections; do benchmark "$section"; done
while read -r name config keys; do
  # shellcheck disable=SC2086  # the keys are words
  if [ -n "$name" ]; then training "$name" "$config" $keys; fi
done <<<"$TRAININGS"
deliver
if [ "${#failed[@]}" -gt 0 ]; then exit 1; fi
if [ "$more" = 1 ]; then exit 75; fi
say "all is done; results in $out"
