#!/usr/bin/env bash
# Makes the environment of a checkout:  deploy/install.sh FOLDER   (PYTHON, TORCH: see the Makefile)
set -euo pipefail
venv=$1
python=${PYTHON:-python3}
torch=${TORCH:-cpu}
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'longtake: %s\n' "$*" >&2; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    say "Python 3.11 or newer is needed, as '$python' (choose another with: make PYTHON=/path/to/python3.12)"
    exit 1
}
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # Debian ships the module that makes environments apart from Python itself.
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $package"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null
    else
        say "this Python cannot make environments: install its venv module (on Debian: sudo apt install $package)"
        exit 1
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

index=()
case $torch in
cpu)
    if "$venv/bin/python" -c "import urllib.request as u; u.urlopen('$cpu_index/torch/', timeout=3)" 2>/dev/null; then
        index=(--index-url "$cpu_index")
    fi
    ;;
cuda) ;;
*) index=(--index-url "$torch") ;;
esac

if [ "$(cat "$venv/torch-build" 2>/dev/null || echo "$torch")" != "$torch" ]; then
    pip uninstall --yes torch  # pip takes one build for as good as another
fi
say "installing torch ($torch) and the rest into $venv: a few minutes the first time"
# torch first and alone: its index may hold nothing else of what is pinned, and with it in place nothing below asks for
# another build.
# An empty array is an unbound variable to the bash 3.2 of macOS.
pip install --constraint constraints.txt --no-deps ${index[@]+"${index[@]}"} torch
pip install --constraint constraints.txt --editable '.[worker,evaluation,embedded,test]'
# The older line of the OpenAI SDK, which the conformance suite drives too, cannot share an environment with the newer.
pip install --no-deps --upgrade --target "$venv/openai-2" --requirement tests/conformance/openai-2.txt
printf '%s\n' "$torch" > "$venv/torch-build"
