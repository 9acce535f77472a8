# Sourced by ./scripts/demo and ./scripts/test: a virtual environment in the checkout with the package in it.
# Usage: setup EXTRA. Does nothing where that was done before for the same pyproject.toml.

setup() {
    local extra="$1" python
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [ ! -x .venv/bin/python ]; then
        for python in python3 python3.13 python3.12 python3.11 ""; do
            if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                break
            fi
        done
        if [ -z "$python" ]; then
            echo "Python 3.11 or newer is needed, and none was found on the PATH." >&2
            exit 2
        fi
        echo "Making .venv with $($python --version) …"
        "$python" -m venv .venv
    fi
    local stamp=".venv/.facerec-$extra" sum
    sum="$(cksum < pyproject.toml)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$sum" ]; then
        echo "Installing facerec[$extra] into .venv (a few minutes the first time) …"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
        echo "$sum" > "$stamp"
    fi
}
