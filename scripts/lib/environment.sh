# Makes the project's own environment, .venv, once. Sourced by scripts/*, never run.
#
# What    ensure_environment EXTRA… leaves $python, an interpreter with zray and those extras.
# Caller  scripts/{check,test,bench,demo,docs} and .ci/run, after sourcing this file.
# Never   touches an environment outside the project, active or not; answers a prompt.
#
# A second run costs one cksum: each installed extra leaves a stamp that names the pyproject.toml
# it was installed from. The stamp is written last, so an interrupted run installs again.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
venv="$root/.venv"
python="$venv/bin/python"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; }

# Prints the comment block at the top of the calling script: its --help.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# A name on PATH proves nothing (pyenv keeps shims of versions that are switched off): run it.
find_python() {
  local candidate
  for candidate in "${ZRAY_PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
    if is_new_enough "$candidate"; then printf '%s\n' "$candidate"; return; fi
  done
  die "zray needs Python 3.11 or newer; found $(python3 --version 2>&1 || echo none)." \
    "Install one, or name one: ZRAY_PYTHON=/path/to/python3.12 $0"
}

make_venv() {
  local base
  rm -rf "$venv"
  if command -v uv >/dev/null 2>&1; then
    # --seed adds pip, so that the environment can be mended where uv is not.
    uv venv --quiet --seed --python "${ZRAY_PYTHON:->=3.11}" "$venv" && return
    say "uv could not make an environment; trying python3 -m venv."
    rm -rf "$venv"
  fi
  base=$(find_python)
  "$base" -m venv "$venv" || die "$base cannot make a virtual environment" \
    "(on Debian and Ubuntu: apt-get install python3-venv)."
}

install_extras() {
  local target=".[$1]"
  say "Installing zray[$1] into .venv …"
  if command -v uv >/dev/null 2>&1 && uv pip install --quiet --python "$python" -e "$target"; then
    return
  fi
  "$python" -m pip install --quiet --disable-pip-version-check -e "$target" ||
    die "installing zray[$1] failed; see pip's words above. Nothing outside .venv has changed."
}

ensure_environment() {
  local extra stamp wanted missing=""
  # One run at a time makes the environment: a second waits here, then finds it made. The lock is
  # on a file that is always there, and closed before any child could inherit and keep it.
  exec 9<pyproject.toml
  if command -v flock >/dev/null 2>&1; then flock 9; fi
  if ! is_new_enough "$python"; then make_venv 9<&-; fi
  wanted=$(cksum <pyproject.toml)
  for extra in "$@"; do
    stamp="$venv/.zray-$extra"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then missing="$missing${missing:+,}$extra"; fi
  done
  if [ -n "$missing" ]; then
    install_extras "$missing" 9<&-
    for extra in ${missing//,/ }; do printf '%s\n' "$wanted" >"$venv/.zray-$extra"; done
  fi
  exec 9<&-
  # pip compiles what it installs, but not a tree in editing; and with PYTHONDONTWRITEBYTECODE, which
  # container images like to set, nobody does: every process would compile zray anew, 0.4 s of CPU.
  "$python" -m compileall -q -j 0 zray brokers actors tests scripts ||
    say "zray could not be compiled ahead: processes start more slowly."
}
