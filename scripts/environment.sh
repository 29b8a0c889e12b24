# Sourced by the other scripts: go to the project's root, make or find a Python environment, install what is missing.
# An environment that is already active is used as it is; otherwise .venv is made once.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

use_environment() {  # use_environment REQUIREMENTS...: leaves `python` ready
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        if [ ! -x .venv/bin/python ]; then
            echo "making a Python environment in .venv"
            "${PYTHON:-python3}" -m venv .venv
        fi
        # shellcheck disable=SC1091
        source .venv/bin/activate
    fi
    local arguments=() stamp
    for file in "$@"; do arguments+=(-r "$file"); done
    stamp="$(python -c 'import sys; print(sys.prefix)')/.installed-$(cat "$@" | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        echo "installing $*"
        python -m pip install --quiet --disable-pip-version-check "${arguments[@]}"
        touch "$stamp"
    fi
}
