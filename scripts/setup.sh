# Sourced by the scripts beside it: a virtual environment in the checkout with the package in it.
# setup EXTRA [FOLDER [lowest]] makes it, unless that was done before for the same pyproject.toml.
# `lowest` installs every dependency that pyproject.toml names in the lowest version it allows.
# run_installed EXTRA FILE … runs a Python file in it; installs nothing, but says what is missing.

setup() {
    local extra="$1" venv="${2:-.venv}" lowest="${3:-}" python constraints=()
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [ ! -x "$venv/bin/python" ]; then
        for python in python3 python3.13 python3.12 python3.11 ""; do
            if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                break
            fi
        done
        if [ -z "$python" ]; then
            echo "Python 3.11 or newer is needed, and none was found on the PATH." >&2
            exit 2
        fi
        echo "Making $venv with $($python --version) …"
        "$python" -m venv "$venv"
    fi
    local stamp="$venv/.facerec-$extra" sum
    sum="$(cksum < pyproject.toml)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$sum" ]; then
        echo "Installing facerec[$extra] into $venv (a few minutes the first time) …"
        if [ -n "$lowest" ]; then
            grep -o '"[a-z][a-zA-Z-]*>=[0-9.]*' pyproject.toml | grep -v hatchling | tr -d '"' | sed 's/>=/==/' \
                | sort -u > "$venv/constraints.txt"
            constraints=(-c "$venv/constraints.txt")
        fi
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${constraints[@]}" -e ".[$extra]"
        echo "$sum" > "$stamp"
    fi
}

run_installed() {
    local extra="$1" scripts python
    scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
    python="$scripts/../.venv/bin/python"
    if [ ! -x "$python" ]; then
        echo "There is no .venv yet; ./scripts/$extra makes it." >&2
        exit 2
    fi
    "$python" "$scripts/missing.py" "$extra"
    exec "$python" "${@:2}"
}
