# Sourced by the other scripts: goes to the project's root and readies `python`.
# An environment that is already active is used as it is and nothing is installed into it; otherwise .venv is made.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

use_environment() {  # use_environment REQUIREMENTS...
    if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
        check_environment
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        echo "making a Python environment in .venv"
        "${PYTHON:-python3}" -m venv .venv
    fi
    source .venv/bin/activate
    local file stamp
    for file in "$@"; do
        stamp=".venv/.$file-$(cksum < "$file" | cut -d' ' -f1)"
        if [ ! -e "$stamp" ]; then
            echo "installing $file"
            python -m pip install --quiet --disable-pip-version-check -r "$file"
            touch "$stamp"
        fi
    done
}

check_environment() {  # one line about an active environment that will not do, instead of an import error
    local need="torch>=2.6,<2.15" found  # what was tried, which is more than what requirements.txt installs
    found="$(python -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)"
    if [ -z "$found" ]; then
        echo "error: the active environment has no torch: pip install -r requirements.txt, or deactivate it" >&2
        exit 2
    fi
    if ! python - "$found" "$need" <<'PYTHON'
import re, sys
found, need = sys.argv[1:]
number = lambda text: [int(part) for part in re.findall(r"\d+", text)[:2]]
least, beyond = (number(part) for part in need.split(","))
sys.exit(not least <= number(found) < beyond)
PYTHON
    then
        echo "error: the active environment has torch $found, tried are $need: pip install -r requirements.txt, or deactivate it" >&2
        exit 2
    fi
}

run_row() {  # run_row [METHOD] [FLAGS...]: main.py with the row of METHOD (FREE without a word); flags typed here win
    local method=free
    if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
        method="$1"
        shift
    fi
    if [ -z "${ROW[$method]:-}" ]; then
        echo "error: no row for $method; there are: ${!ROW[*]}" >&2
        exit 2
    fi
    # shellcheck disable=SC2086  # a row is a list of words
    python main.py --method "$method" ${ROW[$method]} "$@"
}

run_named() {  # run_named DEFAULT [NAME|--all] [FLAGS...]: main.py with the row DEFAULT, NAME, or every one; flags typed here win
    local names=("$1") name
    shift
    if [ "${1:-}" = "--all" ]; then
        mapfile -t names < <(printf '%s\n' "${!ROW[@]}" | sort)
        shift
    elif [ $# -gt 0 ] && [[ "$1" != -* ]]; then
        names=("$1")
        shift
    fi
    for name in "${names[@]}"; do
        if [ -z "${ROW[$name]:-}" ]; then
            echo "error: no row for $name; there are: $(printf '%s\n' "${!ROW[@]}" | sort | tr '\n' ' ')" >&2
            exit 2
        fi
        # shellcheck disable=SC2086  # a row is a list of words
        python main.py ${ROW[$name]} "$@"
    done
}

once() {  # once NAME FLAGS...: a run of main.py, unless it has been finished
    [ -f "runs/$1/result.json" ] || python main.py --run_name "$1" --overwrite "${@:2}"
}

services_environment() {  # makes .venv-services, in which MLServer runs beside this project's own requirements
    [ -x .venv-services/bin/mlserver ] && return
    echo "making a Python environment for MLServer in .venv-services"
    "${PYTHON:-python3}" -m venv .venv-services
    .venv-services/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-services.txt
}
